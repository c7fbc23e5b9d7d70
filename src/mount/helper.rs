//! `fusermount3`, the set-user-id helper that mounts for ordinary users.
//!
//! *Guarantees*: descriptors of this process do not reach the helper; its socket is its standard input.
//! *Assumes*: libfuse's protocol: it sends the descriptor of `/dev/fuse` with one byte over `_FUSE_COMMFD`.
//! *Fails when*: it is not installed or refuses; its own words are passed on. *Order*: none.
//! *Not here*: which path is right for this process (`mount`).

use super::{MountError, MountPlan};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

const PROGRAM: &str = "fusermount3";

/// Mount through the helper; returns the descriptor of `/dev/fuse`.
pub(super) fn mount(plan: &MountPlan) -> Result<OwnedFd, MountError> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|error| MountError::Refused(format!("cannot make a socket pair: {error}")))?;
    let mut child = Command::new(PROGRAM)
        .arg("-o")
        .arg(options(plan))
        .arg("--")
        .arg(&plan.mountpoint)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| not_started(&error))?;
    let received = receive(&ours);
    let mut words = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut words); // only words for the message
    }
    let _ = child.wait(); // the descriptor is the answer
    received.ok_or_else(|| MountError::Refused(format!("{PROGRAM} refused to mount: {}", explain(words.trim()))))
}

/// Unmount through the helper.
pub(super) fn unmount(path: &Path, lazy: bool) -> Result<(), MountError> {
    let output = Command::new(PROGRAM)
        .args(if lazy { &["-u", "-z"][..] } else { &["-u"][..] })
        .arg("--")
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| not_started(&error))?;
    let words = String::from_utf8_lossy(&output.stderr);
    if output.status.success() || words.contains("not found in") {
        return Ok(());
    }
    if words.contains("busy") {
        return Err(MountError::Busy(path.to_owned()));
    }
    Err(MountError::Refused(format!("{PROGRAM} refused to unmount: {}", words.trim())))
}

fn not_started(error: &std::io::Error) -> MountError {
    if error.kind() == std::io::ErrorKind::NotFound {
        return MountError::Refused(format!(
            "no permission to mount, and {PROGRAM} is not installed; install the package fuse3 or mount as root"
        ));
    }
    MountError::Refused(format!("cannot start {PROGRAM}: {error}"))
}

fn explain(words: &str) -> String {
    if words.contains("user_allow_other") {
        return "allow_other needs the line user_allow_other in /etc/fuse.conf; add it or leave the option out".into();
    }
    if words.contains("/dev/fuse") && words.contains("ermission") {
        return "ordinary users may not open /dev/fuse here; allow it (chmod 666 /dev/fuse) or mount as root".into();
    }
    let words = words.strip_prefix("fusermount3: ").unwrap_or(words);
    if words.is_empty() { "it gave no reason".into() } else { words.to_owned() }
}

/// Options in the helper's language: commas and backslashes of values escaped with a backslash.
fn options(plan: &MountPlan) -> String {
    let escape = |value: &str| value.replace('\\', "\\\\").replace(',', "\\,");
    let mut out = format!("fsname={},default_permissions,nosuid,nodev", escape(&plan.source));
    if !plan.subtype.is_empty() {
        out.push_str(&format!(",subtype={}", escape(&plan.subtype)));
    }
    let extra = [
        (plan.read_only, "ro"),
        (plan.allow_other, "allow_other"),
        (!plan.execute, "noexec"),
        (plan.no_access_times, "noatime"),
    ];
    for (_, name) in extra.iter().filter(|(wanted, _)| *wanted) {
        out.push(',');
        out.push_str(name);
    }
    out
}

/// The first descriptor that arrives.
fn receive(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut byte = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut byte)];
    loop {
        match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(source: &str) -> MountPlan {
        MountPlan {
            mountpoint: "/m".into(),
            source: source.into(),
            subtype: "stablefs".into(),
            read_only: true,
            allow_other: false,
            device_nodes: true,
            set_user_id: true,
            execute: true,
            no_access_times: false,
        }
    }

    #[test]
    fn a_source_cannot_smuggle_options_in() {
        let text = options(&plan("/a,allow_other:/b\\c"));
        assert_eq!(text, "fsname=/a\\,allow_other:/b\\\\c,default_permissions,nosuid,nodev,subtype=stablefs,ro");
    }

    #[test]
    fn no_descriptor_is_no_mount() {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        drop(theirs);
        assert!(receive(&ours).is_none());
    }
}
