//! What every scenario does: set the stage, let the load run, tell what happens, prove everything in the end.
//!
//! *Guarantees*: [`Stage::finish`] proves names and bytes on the mount, by scrub, by fsck, and with each replica alone.
//! [`Stage::close`] ends the load and clears up whatever happened before. *Assumes*: one scenario at a time.
//! *Fails when*: as the commands it gives. *Order*: [`Stage::begin`], the scenario, [`Stage::finish`].
//! *Not here*: the faults (`scenario`), the verdict (`judge`).

use super::bed::Bed;
use super::content::Random;
use super::judge::{Alone, Event, Kind, Outcome};
use super::load::{Load, Shared};
use super::verify::{Proof, verify};
use super::{Halt, Options, Stop, Tell};
use crate::volume::scrub::ScrubReport;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Deadline of a backing, unless the scenario says otherwise (SEMANTICS DEG-2).
pub const DEADLINE: Duration = Duration::from_secs(5);
/// What a call may take above the deadline: a call can be several requests, and the machine has other work.
const GRACE: Duration = Duration::from_secs(1);
/// Within this `status` names a lost replica (SEMANTICS DEG-3).
pub const DETECTION_MAX: Duration = Duration::from_secs(5);
/// Within this a replica that can be had again is back.
const RETURN_MAX: Duration = Duration::from_secs(60);
/// A call that takes longer ends the scenario: it will never come back.
const STUCK_MAX: Duration = Duration::from_secs(40);
/// Longest that applications may take to end.
const STOP_MAX: Duration = Duration::from_secs(30);
/// Between two looks at the state.
const STEP: Duration = Duration::from_millis(10);
/// Folder of the load below the mount point.
const FOLDER: &str = "drill";

/// One scenario under way.
pub struct Stage<'a> {
    /// Scratch folder and commands.
    pub bed: Bed,
    /// Choices of this scenario.
    pub random: Random,
    /// Places of the replicas as they are now.
    pub replicas: Vec<PathBuf>,
    /// What is told in the end.
    pub outcome: &'a mut Outcome,
    halt: Halt,
    tell: &'a mut dyn Tell,
    load: Option<Load>,
    began: Instant,
    seed: u64,
    mount_options: String,
    /// Replicas that were away are taken back by themselves; else a scenario has its own way.
    takes_back: bool,
    injected: Instant,
}

impl<'a> Stage<'a> {
    /// An empty stage.
    ///
    /// # Errors
    /// There is no scratch folder.
    pub fn new(
        name: &str,
        options: &Options,
        halt: Halt,
        tell: &'a mut dyn Tell,
        outcome: &'a mut Outcome,
        began: Instant,
    ) -> Result<Stage<'a>, Stop> {
        let bed = Bed::new(options.directory.as_deref(), name, options.keep, halt.clone())?;
        let random = Random::new(&[options.seed, 77]);
        Ok(Stage {
            bed,
            random,
            replicas: Vec::new(),
            outcome,
            halt,
            tell,
            load: None,
            began,
            seed: options.seed,
            mount_options: String::new(),
            takes_back: false,
            injected: began,
        })
    }

    /// From the next mount on, replicas that were away return without being told to.
    pub fn take_back(&mut self) {
        self.takes_back = true;
    }

    /// Make and mount a volume of `size` on `replicas`, and let the applications begin.
    ///
    /// # Errors
    /// A command is refused; no threads.
    pub fn begin(&mut self, size: &str, replicas: Vec<PathBuf>, deadline: Duration) -> Result<(), Stop> {
        self.open(size, replicas, deadline)?;
        self.start()
    }

    /// Make and mount a volume of `size` on `replicas`, and all that the applications need.
    fn open(&mut self, size: &str, replicas: Vec<PathBuf>, deadline: Duration) -> Result<(), Stop> {
        self.tell.progress("making a volume");
        self.replicas = replicas;
        self.outcome.stall_max_ms = (deadline + GRACE).as_millis() as u64;
        let takes_back = if self.takes_back { "return" } else { "noreturn" };
        self.mount_options = format!("deadline={}ms,{takes_back}", deadline.as_millis());
        self.bed.format(size, &self.replicas)?;
        self.mount()?;
        self.tell.progress("writing files");
        let folder = self.bed.mnt.join(FOLDER);
        let load = Load::prepare(self.seed, &folder, self.began);
        let load = load.map_err(|error| Stop::Broken(format!("files cannot be made on the new volume: {error}")))?;
        self.bed.stablefs([OsStr::new("sync"), self.bed.mnt.as_os_str()])?.ok()?;
        load.synced();
        self.load = Some(load);
        Ok(())
    }

    /// Mount what [`Stage::begin`] made.
    ///
    /// # Errors
    /// It is refused.
    pub fn mount(&self) -> Result<(), Stop> {
        self.bed.mount(&self.replicas, &self.mount_options)
    }

    /// Let the applications begin.
    fn start(&mut self) -> Result<(), Stop> {
        let load = self.load.as_mut().ok_or_else(|| Stop::Unable("there is no volume yet".into()))?;
        load.start().map_err(|error| Stop::Unable(format!("no threads: {error}")))?;
        let count = load.count();
        self.event(Kind::Begun, format!("{count} applications: files with fsync, a stream, names, readers that prove"));
        Ok(())
    }

    /// What the applications share.
    ///
    /// # Errors
    /// There is no load yet.
    pub fn shared(&self) -> Result<Arc<Shared>, Stop> {
        self.load.as_ref().map(|load| load.shared.clone()).ok_or_else(|| Stop::Unable("there is no load yet".into()))
    }

    /// How many are at work.
    pub fn applications(&self) -> usize {
        self.load.as_ref().map_or(0, Load::count)
    }

    /// Let them work.
    ///
    /// # Errors
    /// One hangs for ever, or a signal asks for the end.
    pub fn work(&mut self, time: Duration) -> Result<(), Stop> {
        let until = Instant::now() + time;
        self.wait("", time + STUCK_MAX, |_| Ok((Instant::now() >= until).then_some(()))).map(drop)
    }

    /// Look until `look` finds something; how long that took.
    ///
    /// # Errors
    /// Not within `patience`; an application hangs for ever; a signal.
    pub fn wait<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut look: impl FnMut(&mut Stage<'a>) -> Result<Option<T>, Stop>,
    ) -> Result<(T, Duration), Stop> {
        let began = Instant::now();
        loop {
            if let Some(found) = look(self)? {
                return Ok((found, began.elapsed()));
            }
            self.halt.check()?;
            let stuck = self.load.as_ref().and_then(|load| load.shared.probe.longest_now());
            if let Some(stall) = stuck.filter(|stall| Duration::from_millis(stall.ms) > STUCK_MAX) {
                return Err(Stop::Broken(format!("DEG-2: {} has not returned for {} ms", stall.call, stall.ms)));
            }
            if began.elapsed() > patience {
                return Err(Stop::Broken(format!("not within {} ms: {what}", patience.as_millis())));
            }
            let calls = self.load.as_ref().map_or(0, |load| load.shared.probe.tally().calls);
            self.tell.progress(&format!("{calls} calls{}{what}", if what.is_empty() { "" } else { "; waiting: " }));
            std::thread::sleep(STEP);
        }
    }

    /// A fault has been injected: how long it takes to be noticed counts from here.
    pub fn injected(&mut self, text: String) {
        self.about_to_inject();
        self.event(Kind::Injected, text);
    }

    /// A fault is about to be injected: from here on calls count as made under it.
    pub fn about_to_inject(&mut self) {
        self.injected = Instant::now();
        if let Some(load) = &self.load {
            load.shared.probe.hurt();
        }
    }

    /// It was noticed.
    pub fn detected(&mut self, text: &str) {
        let after = self.injected.elapsed().as_millis() as u64;
        self.outcome.detected_after_ms.push(after);
        self.event(Kind::Detected, format!("{text} after {after} ms"));
    }

    /// Something happened.
    pub fn event(&mut self, kind: Kind, text: String) {
        let event = Event { at_ms: self.began.elapsed().as_millis() as u64, kind, text };
        self.tell.event(&event);
        self.outcome.events.push(event);
    }

    /// A promise was broken; the scenario goes on.
    pub fn broken(&mut self, text: String) {
        self.event(Kind::Broken, text.clone());
        self.outcome.broken.push(text);
    }

    /// Wait until `status` says that `replica` is out.
    ///
    /// # Errors
    /// It does not in time.
    pub fn detect_out(&mut self, replica: &Path) -> Result<(), Stop> {
        let wanted = replica.to_string_lossy().into_owned();
        let what = format!("DEG-3: status names {} as out", self.short(replica));
        let (report, _) = self.wait(&what, DETECTION_MAX, |stage| {
            let report = stage.bed.status()?;
            let is_out = report.status.replicas.iter().any(|one| one.path == wanted && one.state == "out");
            Ok(is_out.then_some(report))
        })?;
        let cause = report.status.replicas.iter().find(|one| one.path == wanted).map(|one| one.cause.clone());
        let text = format!("status names {} as out ({})", self.short(replica), cause.unwrap_or_default());
        self.detected(&text);
        if report.status.action.is_none() {
            self.broken("DEG-3: status does not say what to do".into());
        }
        Ok(())
    }

    /// Wait until a replica that was away is back by itself.
    ///
    /// # Errors
    /// It is not, in time.
    pub fn wait_for_return(&mut self, replica: &Path) -> Result<(), Stop> {
        let wanted = replica.to_string_lossy().into_owned();
        let what = format!("RET-1: {} is back by itself", self.short(replica));
        let back = |stage: &mut Stage<'a>| {
            let report = stage.bed.status()?;
            let is_back = report.status.replicas.iter().any(|one| one.path == wanted && one.state == "in sync");
            Ok(report.task.filter(|task| is_back && task.kind == "resync" && task.ended_ns > 0))
        };
        let (task, took) = self.wait(&what, RETURN_MAX, back)?;
        let number = |name: &str| task.result.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
        self.outcome.blocks_healed += number("blocks_copied");
        let text = format!(
            "{} is back by itself: {} blocks missed, {} copied, {} proven, {:.1} s under load",
            self.short(replica),
            number("blocks_missed"),
            number("blocks_copied"),
            number("blocks_proven"),
            took.as_secs_f64()
        );
        self.event(Kind::Healed, text);
        if number("since_group") == 0 {
            self.broken("RET-1: everything was compared, not what was missed".into());
        }
        Ok(())
    }

    /// Replace a replica on the live mount.
    ///
    /// # Errors
    /// It is refused, or the volume is not healthy then.
    pub fn replace(&mut self, slot: usize, new: PathBuf) -> Result<(), Stop> {
        let old = self.replicas[slot].clone();
        self.tell.progress("replace");
        let words: [OsString; 5] =
            ["replace".into(), "--json".into(), self.bed.mnt.clone().into(), old.clone().into(), new.clone().into()];
        let began = Instant::now();
        let report = self.bed.stablefs(words)?.json()?;
        let number = |name: &str| report.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
        self.outcome.blocks_healed += number("blocks_copied");
        self.replicas[slot] = new;
        let text = format!(
            "replace {} {}: {} blocks copied, {} proven, {:.1} s under load",
            self.short(&old),
            self.short(&self.replicas[slot]),
            number("blocks_copied"),
            number("blocks_proven"),
            began.elapsed().as_secs_f64()
        );
        self.event(Kind::Healed, text);
        let state = self.bed.status()?.status.state;
        if state != "healthy" {
            self.broken(format!("DEG-7: after replace the volume is {state}"));
        }
        Ok(())
    }

    /// Scrub on the live mount.
    ///
    /// # Errors
    /// It is refused.
    pub fn scrub(&mut self) -> Result<ScrubReport, Stop> {
        self.tell.progress("scrub");
        let words = [OsStr::new("scrub"), OsStr::new("--json"), self.bed.mnt.as_os_str()];
        let report = self.bed.stablefs(words)?.json()?;
        let report: ScrubReport = serde_json::from_value(report)
            .map_err(|error| Stop::Unable(format!("scrub is not understood: {error}")))?;
        let bad = report.lost + report.combined + report.failed + report.unproven + report.unreached;
        if !report.complete || bad > 0 || report.held_once {
            self.broken(format!("HEAL-1: scrub says: {report}"));
        }
        self.outcome.blocks_healed += report.healed;
        Ok(report)
    }

    /// Path as it is told.
    pub fn short(&self, path: &Path) -> String {
        path.strip_prefix(self.bed.root()).unwrap_or(path).display().to_string()
    }

    /// Judge what a whole proof found.
    ///
    /// # Errors
    /// There is no load yet.
    pub fn prove(&mut self, after_crash: bool, promise: &str, place: &str) -> Result<Proof, Stop> {
        self.tell.progress(&format!("proving every byte {place}"));
        let shared = self.shared()?;
        let proof = verify(&shared, &shared.folder, after_crash);
        for line in proof.wrong.iter().take(10) {
            self.broken(format!("{promise}: {place}: {line}"));
        }
        if proof.wrong.len() > 10 {
            self.broken(format!("{promise}: {place}: and {} more", proof.wrong.len() - 10));
        }
        Ok(proof)
    }

    /// End the load and prove everything, on the mount and on each replica alone.
    ///
    /// # Errors
    /// A command fails.
    pub fn finish(&mut self) -> Result<(), Stop> {
        self.tell.progress("ending the applications");
        if let Some(load) = &mut self.load {
            load.stop(STOP_MAX).map_err(Stop::Broken)?;
        }
        let proof = self.prove(false, "READ-1", "on the mount")?;
        let scrub = self.scrub()?;
        self.bed.umount()?;
        let mut words: Vec<OsString> = vec!["fsck".into(), "-n".into()];
        words.extend(self.replicas.iter().map(Into::into));
        self.tell.progress("fsck");
        let said = self.bed.stablefs(words)?;
        if said.code != 0 {
            let lines: Vec<&str> = said.out.lines().chain(said.err.lines()).collect();
            let (first, last) = (lines.iter().take(3), lines.len().saturating_sub(1).max(3));
            let told = first.chain(lines.iter().skip(last)).copied().collect::<Vec<_>>().join("; ");
            self.broken(format!("HEAL-3: fsck -n ends with code {}, {} lines: {told}", said.code, lines.len()));
        }
        let (files, bytes) = (proof.files, proof.bytes);
        let clean = if said.code == 0 { "clean" } else { "not clean" };
        let text = format!("{files} files, {} on the mount; scrub: {scrub}; fsck -n: {clean}", size(bytes));
        if proof.wrong.is_empty() {
            self.event(Kind::Proven, text);
        }
        for replica in self.replicas.clone() {
            self.halt.check()?;
            self.bed.mount(std::slice::from_ref(&replica), "ro,degraded")?;
            let name = self.short(&replica);
            let proof = self.prove(false, "DUR-1", &format!("on {name} alone"))?;
            self.bed.umount()?;
            if proof.wrong.is_empty() {
                self.event(Kind::Proven, format!("{} files, {} with {name} alone", proof.files, size(proof.bytes)));
                self.outcome.proven_alone.push(Alone { replica: name, files: proof.files, bytes: proof.bytes });
            }
        }
        Ok(())
    }

    /// End everything; `ended` says how the scenario went.
    ///
    /// # Errors
    /// As `ended`; or something could not be cleared away.
    pub fn close(&mut self, ended: Result<(), Stop>) -> Result<(), Stop> {
        self.tell.progress("clearing up");
        let mut stuck = Ok(());
        if let Some(load) = &mut self.load {
            self.outcome.applications = load.shared.probe.tally();
            stuck = load.stop(Duration::from_secs(if ended.is_ok() { 30 } else { 5 }));
        }
        let cleared = self.bed.clear();
        if let (Some(load), Err(_)) = (&mut self.load, &stuck) {
            stuck = load.stop(Duration::from_secs(10)); // their calls have been aborted
        }
        ended?;
        cleared.map_err(|text| Stop::Unable(format!("clearing up: {text}")))?;
        stuck.map_err(Stop::Broken)
    }
}

/// Bytes as a person reads them.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} bytes"),
        10_000..=9_999_999 => format!("{} KB", bytes / 1000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}
