//! The control socket: requests and answers over a real socket, and clients that misbehave.

use super::*;
use serde_json::json;

struct Echo;

impl Control for Echo {
    fn answer(&self, request: Request, progress: &mut dyn FnMut(&Progress) -> bool) -> Result<Value, String> {
        match request {
            Request::Status {} => Ok(json!("here")),
            Request::Replace { old, new } => {
                for done in 1..=2 {
                    assert!(progress(&Progress { what: "copying".into(), done, total: 2, ..Progress::default() }));
                }
                Ok(json!({ "old": old, "new": new }))
            }
            Request::Sync {} => panic!("a bug"),
            _ => Err("not today".into()),
        }
    }
}

fn start() -> (UnixStream, std::thread::JoinHandle<io::Result<()>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ours, std::thread::spawn(move || serve(theirs, &Echo)))
}

#[test]
fn requests_are_answered_in_turn_with_progress_between() {
    let (stream, server) = start();
    let mut client = Client::new(stream).unwrap();
    assert_eq!(client.call(&Request::Status {}, &mut |_| {}).unwrap(), json!("here"));
    let mut seen = Vec::new();
    let request = Request::Replace { old: "/b".into(), new: "/c\n".into() };
    let answer = client.call(&request, &mut |progress| seen.push(progress.done)).unwrap();
    assert_eq!((seen, answer), (vec![1, 2], json!({ "old": "/b", "new": "/c\n" })));
    let refused = client.call(&Request::Scrub { action: ScrubAction::Stop }, &mut |_| {}).unwrap_err();
    assert_eq!(refused.to_string(), "not today");
    drop(client);
    server.join().unwrap().unwrap();
}

#[test]
fn a_bug_in_an_answer_is_an_answer() {
    let (stream, server) = start();
    let mut client = Client::new(stream).unwrap();
    assert!(matches!(client.call(&Request::Sync {}, &mut |_| {}), Err(CallError::Refused(_))));
    assert!(client.call(&Request::Status {}, &mut |_| {}).is_ok());
    drop(client);
    server.join().unwrap().unwrap();
}

#[test]
fn junk_is_refused_and_the_connection_goes_on() {
    let (mut stream, server) = start();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for line in ["junk\n", "{\"request\":\"status\",\"extra\":1}\n", "{\"request\":\"format\"}\n", "[]\n", "\n"] {
        stream.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        reader.read_line(&mut answer).unwrap();
        assert!(answer.starts_with("{\"error\":"), "{line:?} brought {answer:?}");
    }
    drop((stream, reader));
    server.join().unwrap().unwrap();
}

#[test]
fn an_endless_line_ends_the_connection() {
    let (mut stream, server) = start();
    stream.write_all(&vec![b'x'; LINE_MAX as usize]).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("too long"));
    server.join().unwrap().unwrap();
}

#[test]
fn the_socket_is_closed_to_others_and_goes_with_the_server() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("0-1.sock");
    std::fs::write(&path, b"left by a dead daemon").unwrap();
    let server = Server::start(&path, Arc::new(Echo)).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut client = Client::new(UnixStream::connect(&path).unwrap()).unwrap();
    assert_eq!(client.call(&Request::Status {}, &mut |_| {}).unwrap(), json!("here"));
    assert_eq!(client.peer_process(), Some(rustix::process::getpid()));
    drop(server);
    assert!(!path.exists());
}
