//! Text from outside: requests on the control socket, answers to them, the witness file, the kernel's table of mounts.
//!
//! Goal: junk is refused or left out; nothing panics, waits or grows.

use super::{is_long, memory};
use stablefs::control::{Client, Control, Progress, Request, serve};
use stablefs::disk::sim::Random;
use stablefs::format::Uuid;
use stablefs::mount::table;
use stablefs::simulate::mutate::sample::samples;
use stablefs::volume::witness;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// `text` with a few bytes changed, lost, doubled, or replaced by what parsers trip over.
fn mangled(text: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = text.to_vec();
    for _ in 0..random.range(1, 5) {
        let at = random.below(out.len() as u64 + 1) as usize;
        let words: [&[u8]; 12] = [
            b"\"",
            b"{",
            b"[[[[[[[[",
            b"\\u0000",
            b"\\777",
            b" ",
            b"-",
            b"18446744073709551616",
            b"\n",
            b"\xff\xfe",
            b"\\",
            b"null",
        ];
        match random.below(4) {
            0 if at < out.len() => out[at] = random.bits() as u8,
            1 if at < out.len() => drop(out.remove(at)),
            2 => {
                let end = (at + random.below(20) as usize).min(out.len());
                let part = out[at..end].to_vec();
                out.splice(at..at, part);
            }
            _ => drop(out.splice(at..at, random.pick(&words).to_vec())),
        }
    }
    out
}

struct Echo;

impl Control for Echo {
    fn answer(&self, request: Request, _: &mut dyn FnMut(&Progress) -> bool) -> Result<serde_json::Value, String> {
        match request {
            // A panic, but past the hook: with RUST_BACKTRACE set that would read the debug info of this program.
            Request::Replace { old, .. } if old.is_empty() => std::panic::resume_unwind(Box::new("a bug in an answer")),
            other => serde_json::to_value(other).map_err(|error| error.to_string()),
        }
    }
}

/// What the server sends to a client that sends `bytes` and hangs up.
fn talk(bytes: &[u8]) -> Vec<u8> {
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    let mut reader = ours.try_clone().expect("a descriptor");
    std::thread::scope(|scope| {
        let server = scope.spawn(move || drop(serve(theirs, &Echo)));
        let listener = scope.spawn(move || {
            let mut said = Vec::new();
            drop(reader.read_to_end(&mut said));
            said
        });
        drop(ours.write_all(bytes)); // a server that has had enough hangs up
        drop(ours.shutdown(Shutdown::Write));
        server.join().expect("the server ends without a panic");
        listener.join().expect("so does the listener")
    })
}

#[test]
fn requests_and_answers() {
    let _alone = memory::alone();
    let good: [&[u8]; 4] = [
        b"{\"request\":\"status\"}\n",
        b"{\"request\":\"scrub\",\"action\":\"start\"}\n",
        b"{\"request\":\"replace\",\"old\":\"0\",\"new\":\"/x\"}\n",
        b"{\"request\":\"umount\",\"lazy\":true}\n{\"request\":\"ping\"}\n",
    ];
    let mut random = Random::new(5);
    for i in 0..if is_long() { 20_000 } else { 1500 } {
        let guard = memory::Guarded::begin(i);
        let request: &[u8] = good[random.below(4) as usize];
        let bytes = mangled(request, &mut random);
        let said = talk(&bytes);
        let lines = said.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        for line in lines {
            let is_reply = line.starts_with(b"{\"ok\":") || line.starts_with(b"{\"error\":");
            assert!(is_reply, "{} was answered with {}", bytes.escape_ascii(), line.escape_ascii());
        }
        let used = guard.end();
        assert!(used.peak < 1 << 20, "{used:?} bytes for {}", bytes.escape_ascii());
    }
    let deep = [&b"["[..]; 60_000].concat();
    let long = vec![b'x'; 1 << 20];
    for bytes in [&deep, &long] {
        let said = talk(bytes);
        assert!(said.starts_with(b"{\"error\":"), "{}", said.escape_ascii());
    }
    for i in 0..300 {
        let answer = mangled(b"{\"progress\":{\"what\":\"x\",\"done\":1}}\n{\"ok\":{\"a\":[1,2]}}\n", &mut random);
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(&answer).expect("room in the socket");
        theirs.shutdown(Shutdown::Write).expect("half of it");
        let guard = memory::Guarded::begin(i);
        drop(Client::new(ours).expect("a descriptor").call(&Request::Status {}, &mut |_| {}));
        assert!(guard.end().peak < 1 << 20);
    }
}

#[test]
fn witnesses_and_tables_of_mounts() {
    let _alone = memory::alone();
    let root = &samples()[0].survey.root;
    let text = format!(
        "{{\"volume\":\"{}\",\"version\":{},\"epoch\":\"{}\",\"in_sync\":[\"{}\"],\"paths\":[\"/a\"]}}",
        root.volume,
        root.version + 5,
        Uuid([9; 16]),
        root.members[0].replica
    );
    assert!(witness::judge(&text, root, &[]).is_err(), "this host has seen a newer state");
    assert!(witness::judge(&text, root, &[root.members[0].replica]).is_ok());
    let table = b"812 29 0:57 / /mnt/my\\040disk rw,nosuid - fuse.stablefs /a:/b\\054c rw,user_id=1000\n36 35 98:0 / /m rw master:1 - ext3 /dev/root rw\n";
    assert_eq!(table::entries(table).len(), 2);
    let mut random = Random::new(6);
    for i in 0..if is_long() { 500_000 } else { 20_000 } {
        let guard = memory::Guarded::begin(i);
        let mangled_text = String::from_utf8_lossy(&mangled(text.as_bytes(), &mut random)).into_owned();
        drop(witness::judge(&mangled_text, root, &[root.members[0].replica]));
        let mangled_table = mangled(table, &mut random);
        for entry in table::entries(&mangled_table) {
            let _ = (entry.is_fuse(), entry.owner());
        }
        assert!(guard.end().peak < 1 << 20, "{}", mangled_table.escape_ascii());
    }
}
