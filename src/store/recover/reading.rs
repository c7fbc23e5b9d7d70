//! The records of the log that follow a root.
//!
//! *Guarantees*: each record is taken from whichever replica proves it, and given to those in sync that lack it; the end
//! of the log is where no replica has the next record, unless a later one says that it had been acknowledged, or the
//! place where it may stand cannot be read. *Assumes*: no record is written meanwhile.
//! *Fails when*: [`StoreError::Refused`]: something acknowledged is lost, or may be.
//! *Order*: by place in the ring. *Not here*: what the records do (`recover`).

use super::Report;
use crate::disk::buffer::{Buf, Slice};
use crate::disk::{Combination, Proof};
use crate::format::log::{self, Entry, RecordHead};
use crate::format::{Addr, Root};
use crate::store::{Store, StoreError};
use std::collections::BTreeMap;

/// What to do where the log ends at a record that had been acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogEnd {
    /// Refuse: something acknowledged would be lost.
    Proven,
    /// Go on without it and what followed: a person said so.
    Accepted,
}

/// What stands on one replica where a record is expected.
enum Place {
    Record(Box<(RecordHead, Buf)>),
    /// Read, and not that record.
    Other,
    /// The record may stand there.
    Unreadable,
}

/// Nobody can read the place of record `seq`.
fn blind(seq: u64, addr: u64) -> StoreError {
    StoreError::Refused(format!(
        "block {addr} of the log cannot be read on any replica, and record {seq} may stand there: \
         `stablefs fsck -y` goes on without it and what followed it"
    ))
}

/// What waits in the log.
#[derive(Debug, Default)]
pub struct Waiting {
    /// Records.
    pub records: u64,
    /// What is damaged on one replica although it had been acknowledged, one line each.
    pub findings: Vec<String>,
    /// What was healed of it, and of what is damaged only because of the crash.
    pub healed: u64,
    /// Findings that were not healed.
    pub left: Vec<String>,
    /// What no replica had and was (opened for reading only: can be) put together from the parts, by block.
    pub combined: BTreeMap<Addr, String>,
}

impl Waiting {
    fn note(&mut self, acknowledged: bool, replica: usize, what: &str, healed: bool) {
        self.healed += u64::from(healed);
        if acknowledged {
            let line = format!("replica {replica}: {what} is damaged{}", if healed { "; healed" } else { "" });
            self.left.extend((!healed).then(|| line.clone()));
            self.findings.push(line);
        }
    }
}

/// A record with its entries.
pub(super) struct Record {
    pub head: RecordHead,
    pub entries: Vec<Entry>,
}

impl Store {
    /// What waits in the log for replay, proven on every replica in sync. Where writing is allowed, records that one
    /// of them lacks are healed, and so are the blocks that records name.
    pub fn log_waiting(&self) -> Result<Waiting, StoreError> {
        let root = self.view().committed.root.clone();
        let mut waiting = Waiting::default();
        if root.clean {
            return Ok(waiting);
        }
        let mut report = Report::default();
        let records = self.read_log(&root, LogEnd::Proven, &mut report)?;
        waiting.records = records.len() as u64;
        // What came after these may never have been acknowledged: a crash leaves it on any replica.
        let acked = records.iter().map(|record| record.head.acked).max().unwrap_or(0);
        for (replica, seq, addr) in report.lacking {
            waiting.note(seq <= acked, replica, &format!("log record at block {addr}"), !self.options.read_only);
        }
        let members = self.mirror.members();
        for replica in (0..self.mirror.replicas()).filter(|r| members.contains(*r)) {
            for record in &records {
                self.prove_runs(replica, record, acked, &mut waiting);
            }
        }
        Ok(waiting)
    }

    fn prove_runs(&self, replica: usize, record: &Record, acked: u64, waiting: &mut Waiting) {
        for entry in &record.entries {
            let Entry::Run { addr, sums, .. } = entry else { continue };
            let sums: Vec<u64> = sums.iter().map(|sum| u64::from(*sum)).collect();
            let proofs = self.mirror.prove(replica, *addr, &sums, !self.options.read_only);
            for (at, (proof, sum)) in (*addr..).zip(proofs.into_iter().zip(&sums)) {
                let healed = match proof {
                    Proof::Correct | Proof::Unproven(_) => continue,
                    Proof::Healed(_) => true,
                    Proof::Damaged(_) | Proof::Lost(_) => self.combine_run(at, *sum, waiting),
                };
                waiting.note(record.head.seq <= acked, replica, &format!("block {at} that a log record names"), healed);
            }
        }
    }

    /// A block that a record names is damaged: put it together if no replica has it. Whether it is whole now.
    fn combine_run(&self, addr: Addr, sum: u64, waiting: &mut Waiting) -> bool {
        let Combination::Proven { recipe, .. } = self.mirror.combine(addr, sum, !self.options.read_only) else {
            return false;
        };
        waiting.combined.insert(addr, format!("a log record names block {addr}: {recipe}"));
        !self.options.read_only
    }

    /// Why replay must be told to go on without a part of the log, if it must.
    pub fn log_damage(&self) -> Result<Option<String>, StoreError> {
        let root = self.view().committed.root.clone();
        if root.clean {
            return Ok(None);
        }
        match self.read_log(&root, LogEnd::Proven, &mut Report::default()) {
            Err(StoreError::Refused(why)) => Ok(Some(why)),
            read => read.map(|_| None),
        }
    }

    /// All records that follow `root`, in order; each from whichever replica proves it.
    pub(super) fn read_log(&self, root: &Root, end: LogEnd, report: &mut Report) -> Result<Vec<Record>, StoreError> {
        let ring = self.label.geometry.log_blocks;
        let mut records = Vec::new();
        let (mut seq, mut at) = (root.log_seq, root.log_at);
        loop {
            let found = match self.read_record(root, (seq, at), end, report)? {
                Some(found) => Some((found, at)),
                None if at != 0 => self.read_record(root, (seq, 0), end, report)?.map(|found| (found, 0)),
                None => None,
            };
            let Some((record, stands)) = found else { break };
            // It was written when that root was durable: the one at hand is not the last, and the groups between are
            // missing.
            if record.head.root_version > root.version {
                if end == LogEnd::Accepted {
                    break;
                }
                return Err(StoreError::Refused(format!(
                    "root {} was durable and is on none of these replicas, the newest here is {}: give the replica \
                     that has it; if it is gone for good, `stablefs fsck -y` goes on without what followed",
                    record.head.root_version, root.version
                )));
            }
            seq += 1;
            let next = stands + record.head.blocks;
            at = if next >= ring { 0 } else { next };
            records.push(record);
        }
        if end == LogEnd::Proven {
            self.check_end(root, seq)?;
        }
        report.replayed = records.len() as u64;
        // Group n's changes come before those of n+1, whatever the order in which they were logged.
        records.sort_by_key(|r| (r.head.txg, r.head.seq));
        records.retain(|r| r.head.txg > root.txg);
        Ok(records)
    }

    fn read_record(
        &self,
        root: &Root,
        (seq, at): (u64, u32),
        end: LogEnd,
        report: &mut Report,
    ) -> Result<Option<Record>, StoreError> {
        let addr = self.label.geometry.log_at + u64::from(at);
        let members = self.mirror.members();
        let mut proven: Option<(RecordHead, Buf)> = None;
        let mut lacking = Vec::new();
        let mut seen = false;
        for replica in (0..self.mirror.replicas()).filter(|r| members.contains(*r)) {
            match self.record_on(replica, root, seq, at, addr) {
                Place::Record(found) if proven.as_ref().is_some_and(|(_, other)| other[..] != found.1[..]) => {
                    return Err(StoreError::Refused(format!(
                        "the replicas hold two log records {seq}, and both prove themselves: one was forged; mount one \
                         alone with -o degraded,ro to see which"
                    )));
                }
                Place::Record(found) => drop(proven.get_or_insert(*found)),
                Place::Other => {
                    seen = true;
                    lacking.push(replica);
                }
                Place::Unreadable => lacking.push(replica),
            }
        }
        let Some((head, buf)) = proven else {
            return if seen || end == LogEnd::Accepted { Ok(None) } else { Err(blind(seq, addr)) };
        };
        let mut rest = log::entries(&buf, &head)?;
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let (entry, next) = Entry::decode(rest)?;
            entries.push(entry);
            rest = next;
        }
        if !lacking.is_empty() && !self.options.read_only {
            let data = Slice::whole(buf);
            for &replica in &lacking {
                if self.mirror.write_raw(replica, addr, data.clone()).is_err() {
                    self.mirror.set_out(replica, "it could not take back a log record");
                } else {
                    report.healed += 1;
                }
            }
            self.mirror.flush()?;
        }
        report.lacking.extend(lacking.into_iter().map(|replica| (replica, seq, addr)));
        Ok(Some(Record { head, entries }))
    }

    fn record_on(&self, replica: usize, root: &Root, seq: u64, at: u32, addr: u64) -> Place {
        let ring = self.label.geometry.log_blocks;
        let Ok(first) = self.mirror.read_raw(replica, addr, 1) else { return Place::Unreadable };
        let Ok(head) = log::decode_head(&first, self.label.volume, addr, ring) else { return Place::Other };
        if head.log_id != root.log_id || head.seq != seq || at + head.blocks > ring {
            return Place::Other;
        }
        let whole = if head.blocks == 1 { Ok(first) } else { self.mirror.read_raw(replica, addr, head.blocks) };
        // Read once more, its head may be another one by now.
        let proves = |whole: &Buf| {
            log::decode_head(whole.block(0), self.label.volume, addr, ring).is_ok_and(|again| again == head)
                && log::entries(whole, &head).is_ok()
        };
        match whole {
            Ok(whole) if proves(&whole) => Place::Record(Box::new((head, whole))),
            Ok(_) => Place::Other,
            Err(_) => Place::Unreadable,
        }
    }

    /// The log ends before `missing`. If a later record says that it had been acknowledged, that is damage.
    fn check_end(&self, root: &Root, missing: u64) -> Result<(), StoreError> {
        const STEP: u32 = 256;
        let ring = self.label.geometry.log_blocks;
        let members = self.mirror.members();
        let replicas: Vec<usize> = (0..self.mirror.replicas()).filter(|r| members.contains(*r)).collect();
        let tells = |from: u64, buf: &Buf| {
            (0..buf.blocks()).any(|i| {
                let head = log::decode_head(buf.block(i), self.label.volume, from + i as u64, ring);
                head.is_ok_and(|h| h.log_id == root.log_id && h.seq > missing && h.acked >= missing)
            })
        };
        for start in (0..ring).step_by(STEP as usize) {
            let blocks = STEP.min(ring - start);
            let from = self.label.geometry.log_at + u64::from(start);
            let read: Vec<_> = replicas.iter().map(|r| self.mirror.read_raw(*r, from, blocks)).collect();
            let mut said = read.iter().flatten().any(|buf| tells(from, buf));
            if !said && read.iter().all(Result::is_err) {
                // One bad sector must not hide what stands beside it.
                said = (from..from + u64::from(blocks)).any(|addr| {
                    let mut read = replicas.iter().filter_map(|r| self.mirror.read_raw(*r, addr, 1).ok());
                    read.any(|buf| tells(addr, &buf))
                });
            }
            if said {
                return Err(StoreError::Refused(format!(
                    "log record {missing} had been acknowledged and is damaged on every replica: \
                     `stablefs fsck -y` goes on without it and what followed it"
                )));
            }
        }
        Ok(())
    }
}
