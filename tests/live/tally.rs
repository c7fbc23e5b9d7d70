//! What a suite of somebody else's came to: one row of the table that `scripts/test --all` prints.
//!
//! A row is a file in `STABLEFS_TEST_TABLE`; it says "did not end" from the beginning until the suite has. Without that
//! variable nothing is written.

use std::fs;
use std::path::PathBuf;

/// A suite that is running.
pub struct Tally {
    row: Option<PathBuf>,
    suite: String,
}

impl Tally {
    /// `order`: where in the table it stands.
    pub fn begin(order: u32, suite: &str) -> Tally {
        let row =
            std::env::var_os("STABLEFS_TEST_TABLE").map(|folder| PathBuf::from(folder).join(format!("{order:03}")));
        let tally = Tally { row, suite: suite.to_owned() };
        tally.write(0, 1, 0, "did not end");
        tally
    }

    /// Write the row, then fail if something has; `note` says what was done, and why anything was skipped.
    #[track_caller]
    pub fn end(self, passed: u64, failed: u64, skipped: u64, note: &str) {
        println!("{}: {passed} passed, {failed} failed, {skipped} skipped; {note}", self.suite);
        self.write(passed, failed, skipped, note);
        assert_eq!(failed, 0, "{}: {note}", self.suite);
        assert!(passed > 0 || skipped > 0, "{}: nothing was run", self.suite);
    }

    fn write(&self, passed: u64, failed: u64, skipped: u64, note: &str) {
        let Some(row) = &self.row else { return };
        let note = note.replace(['|', '\n'], " ");
        fs::write(row, format!("| {} | {passed} | {failed} | {skipped} | {note} |\n", self.suite)).expect("a row");
    }
}
