//! The tables, and the document that they stand in.

use super::Cells;
use super::cell::{Cell, Fault, Healed, Verdict};
use super::halves::Halves;
use super::scene::Row;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;

const BEGIN: &str = "<!-- tables: written by tests/structures -->\n";
const END: &str = "<!-- end of tables -->\n";

fn healed(stage: Healed) -> &'static str {
    match stage {
        Healed::AtOnce => "healed (write)",
        Healed::Mount => "healed (mount)",
        Healed::Read => "healed (read)",
        Healed::Scrub => "healed (scrub)",
        Healed::Changes | Healed::NotNeeded => "not needed",
    }
}

/// What a cell says, and the note that explains it.
fn text(verdict: &Verdict) -> (&'static str, Option<char>) {
    match verdict {
        Verdict::Healed(stage) => (healed(*stage), None),
        Verdict::Error => ("error", None),
        Verdict::Space => ("space only", Some('a')),
        Verdict::Refused(Some("the last record of the log")) => ("refused", Some('b')),
        Verdict::Refused(Some("the first record of the log" | "the second record of the log")) => {
            ("refused", Some('c'))
        }
        Verdict::Refused(None) => ("refused", Some('d')),
        Verdict::Back("the second record of the log") => ("back", Some('e')),
        Verdict::Refused(Some("what was synced of the newest group")) => ("refused", Some('f')),
        // A fault that changes nothing shows nothing.
        other => panic!("a new kind of cell, which needs a note: {other:?}"),
    }
}

fn noted(verdict: &Verdict) -> String {
    match text(verdict) {
        (text, Some(note)) => format!("{text} [{note}]"),
        (text, None) => text.into(),
    }
}

fn head(out: &mut String) {
    let names: Vec<&str> = Fault::ALL.iter().map(|fault| fault.name()).collect();
    writeln!(out, "| structure | {} |", names.join(" | ")).unwrap();
    writeln!(out, "|---{}|", "|---".repeat(Fault::ALL.len())).unwrap();
}

/// The sides of one fault on one replica: stages may differ, the outcome may not.
fn single(cells: &[Cell; 3]) -> String {
    let texts: BTreeSet<&str> = cells[..2].iter().map(|cell| text(&cell.verdict).0).collect();
    let healed: Vec<&str> = texts.iter().copied().filter(|text| text.starts_with("healed")).collect();
    match &healed[..] {
        [] => texts.into_iter().collect::<Vec<_>>().join(" / "),
        [one] => (*one).into(),
        [first, others @ ..] => {
            let stage = |text: &&str| text.trim_start_matches("healed (").trim_end_matches(')').to_owned();
            let stages: Vec<String> = others.iter().map(stage).collect();
            format!("{}, {})", first.trim_end_matches(')'), stages.join(", "))
        }
    }
}

/// A refusal without what differs from cell to cell.
fn plain(why: &str) -> String {
    let mut out = String::new();
    let mut rest = why;
    while let Some(at) = rest.find(" (replica ") {
        out.push_str(&rest[..at]);
        let mut open = 0;
        let closes = |(_, c): &(usize, char)| {
            open += i32::from(*c == '(') - i32::from(*c == ')');
            *c == ')' && open == 0
        };
        let end = rest[at..].char_indices().find(closes).map_or(rest.len(), |(end, _)| at + end + 1);
        rest = &rest[end..];
    }
    out.push_str(rest);
    let mut words: Vec<String> = Vec::new();
    for word in out.split(' ') {
        let bare = word.trim_end_matches([':', ',']);
        let is_number = !bare.is_empty() && bare.bytes().all(|b| b.is_ascii_digit());
        words.push(if is_number { format!("N{}", &word[bare.len()..]) } else { word.to_owned() });
    }
    words.join(" ")
}

fn codes(cells: &Cells) -> String {
    let codes: BTreeSet<[Option<u8>; 2]> = cells.iter().map(|cells| cells[2].fsck).collect();
    let one = |code: Option<u8>| code.map_or("8".into(), |code| code.to_string());
    codes.iter().map(|[look, repair]| format!("{}, {}", one(*look), one(*repair))).collect::<Vec<_>>().join("; ")
}

/// All tables.
pub fn tables(rows: &[(&Row, Cells)], halves: &[Halves]) -> String {
    let mut out = String::from("## One replica\n\n");
    head(&mut out);
    for (row, cells) in rows {
        let texts: Vec<String> = cells.iter().map(single).collect();
        writeln!(out, "| {} | {} |", row.name, texts.join(" | ")).unwrap();
    }
    out.push_str("\n## The same block on both replicas\n\n");
    head(&mut out);
    for (row, cells) in rows {
        let texts: Vec<String> = cells.iter().map(|cells| noted(&cells[2].verdict)).collect();
        writeln!(out, "| {} | {} |", row.name, texts.join(" | ")).unwrap();
    }
    out.push_str("\nWhat fails then, and what fsck says (exit codes without and with `-y`, after the use):\n\n");
    out.push_str("| structure | calls that answered EIO | fsck, fsck -y | what mounting says |\n|---|---|---|---|\n");
    for (row, cells) in rows {
        let calls: BTreeSet<&str> = cells.iter().flat_map(|cells| &cells[2].calls).copied().collect();
        let why: BTreeSet<String> = cells.iter().filter_map(|cells| cells[2].refusal.as_deref().map(plain)).collect();
        let calls = if calls.is_empty() { "none".into() } else { calls.into_iter().collect::<Vec<_>>().join(", ") };
        let why = why.into_iter().collect::<Vec<_>>().join("; ");
        writeln!(out, "| {} | {calls} | {} | {why} |", row.name, codes(cells)).unwrap();
    }
    let count = 3 * rows.iter().map(|(_, cells)| cells.len()).sum::<usize>();
    writeln!(out, "\n{} structures, {} faults, {count} runs.", rows.len(), Fault::ALL.len()).unwrap();
    out.push_str("\n## The same block on both replicas, in different sectors\n\n");
    out.push_str("| structure | before | scrub | fsck, fsck -y |\n|---|---|---|---|\n");
    for Halves { name, before, scrub, fsck: [look, repair] } in halves {
        let scrub = scrub.unwrap_or("cannot be mounted");
        writeln!(out, "| {name} | {before} | {scrub} | {look}, {repair} |").unwrap();
    }
    out
}

/// One replica: everything is healed, or nothing needed it.
pub fn check_single(rows: &[(&Row, Cells)]) {
    for (row, cells) in rows {
        for (fault, cells) in Fault::ALL.iter().zip(cells) {
            for cell in &cells[..2] {
                let fine = matches!(cell.verdict, Verdict::Healed(_)) && cell.calls.is_empty();
                assert!(fine, "{}, {}, one replica: {:?}", row.name, fault.name(), cell.verdict);
            }
        }
    }
}

/// The document holds these tables and a note for each cell that needs one.
pub fn compare(rows: &[(&Row, Cells)], halves: &[Halves]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/FAULTS.md");
    let document = std::fs::read_to_string(&path).expect("docs/FAULTS.md");
    let (before, rest) = document.split_once(BEGIN).expect("the marker before the tables");
    let (now, after) = rest.split_once(END).expect("the marker behind the tables");
    let tables = format!("\n{}\n", tables(rows, halves));
    for (_, cells) in rows {
        for cell in cells.iter().flatten() {
            if let (_, Some(note)) = text(&cell.verdict) {
                assert!(after.contains(&format!("\n- **[{note}]** ")), "note {note} is missing");
            }
        }
    }
    if std::env::var_os("STABLEFS_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{tables}{END}{after}")).expect("docs/FAULTS.md is written");
        return;
    }
    let differs = now.lines().zip(tables.lines()).find(|(now, new)| now != new);
    assert!(now == tables, "docs/FAULTS.md says otherwise (STABLEFS_WRITE_DOCS=1 writes what is true): {differs:#?}");
}
