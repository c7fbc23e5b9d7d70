//! `drill`: break scratch volumes for real, and show how it went.
//!
//! *Guarantees*: the exit code says it: 0 all passed (what is skipped is named, with the reason), 1 a promise was broken or a
//! scenario could not be carried out, 2 wrong usage, 128 and the signal's number if interrupted. Nothing stays behind.
//! *Assumes*: nothing. *Fails when*: wrong usage. *Order*: scenarios one after the other.
//! *Not here*: what is done and judged (`drill`).

use super::{FAILED, USAGE, complain};
use crate::drill::judge::{Event, Outcome, Summary};
use crate::drill::scenario::{self, Scenario};
use crate::drill::{self, Halt, Options, Tell};
use clap::{Args, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::ProgressBar;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// `stablefs drill`.
#[derive(Debug, Subcommand)]
pub(super) enum DrillCommand {
    /// Tell what there is, and what cannot be run here
    List {
        /// Tell it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Run scenarios on scratch volumes
    Run(RunArgs),
    /// Clear up when whoever started it is gone
    #[command(hide = true)]
    Guard {
        /// The scratch folder
        directory: PathBuf,
        /// Leave its files
        #[arg(long)]
        keep: bool,
    },
}

/// `stablefs drill run`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Names of scenarios, or all
    #[arg(required = true, num_args = 1..)]
    names: Vec<String>,
    /// Contents and choices follow from it (moments do not) [default: a fresh one]
    #[arg(long)]
    seed: Option<u64>,
    /// Tell the result as JSON
    #[arg(long)]
    json: bool,
    /// Where the scratch folders are made [default: the folder for temporary files, on a disk]
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Leave the scratch folders for a look: replicas, images, the daemon's log; nothing stays mounted
    #[arg(long)]
    keep: bool,
}

/// Do what was asked for; the exit code.
pub(super) fn drill(command: &DrillCommand) -> u8 {
    match command {
        DrillCommand::List { json } => list(*json),
        DrillCommand::Run(args) => run(args),
        DrillCommand::Guard { directory, keep } => match drill::guard(directory, *keep) {
            Ok(()) => 0,
            Err(text) => {
                complain(&text);
                FAILED
            }
        },
    }
}

/// To standard output; nobody to tell if it is gone, and there is still clearing up to do.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _gone = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn list(json: bool) -> u8 {
    let mut values = Vec::new();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["scenario", "what is done", "here"]);
    for scenario in scenario::ALL {
        let lacking = scenario.lacking();
        values.push(json!({ "name": scenario.name(), "about": scenario.about(), "lacking": lacking }));
        let here = lacking.unwrap_or_else(|| "can be run".into());
        table.add_row([scenario.name(), scenario.about(), &here]);
    }
    if json {
        say(&serde_json::Value::Array(values).to_string());
    } else {
        say(&trimmed(&table));
    }
    0
}

fn run(args: &RunArgs) -> u8 {
    let chosen = match scenario::choose(&args.names) {
        Ok(chosen) => chosen,
        Err(text) => {
            complain(&text);
            return USAGE;
        }
    };
    if let Some(directory) = args.directory.as_ref().filter(|directory| !directory.is_dir()) {
        complain(&format!("{} is no directory", directory.display()));
        return USAGE;
    }
    let seed = args.seed.unwrap_or_else(super::simulate::fresh_seed);
    let halt = Halt::default();
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        // Where that is not possible the guard clears up.
        let _registered = signal_hook::flag::register_usize(signal, Arc::clone(&halt.0), signal as usize);
    }
    let options = Options { seed, directory: args.directory.clone(), keep: args.keep };
    let mut screen = Screen { json: args.json, bar: None, name: String::new() };
    if !args.json {
        say(&format!("seed {seed}"));
    }
    let summary = drill::run(&chosen, &options, &halt, &mut screen);
    screen.clear();
    if args.json {
        match serde_json::to_string_pretty(&summary) {
            Ok(text) => say(&text),
            Err(error) => complain(&error.to_string()),
        }
    } else {
        say(&format!("\n{}", trimmed(&table(&summary))));
        say(&last_line(&summary));
    }
    match halt.0.load(std::sync::atomic::Ordering::SeqCst) {
        0 if summary.failed == 0 => 0,
        0 => FAILED,
        signal => 128 + signal as u8,
    }
}

fn last_line(summary: &Summary) -> String {
    let Summary { passed, failed, skipped, seconds, seed, .. } = summary;
    let ended = if summary.interrupted { "interrupted; " } else { "" };
    let mut line = format!("\n{ended}{passed} passed, {failed} failed, {skipped} skipped; {seconds:.0} s, seed {seed}");
    for outcome in summary.scenarios.iter().filter(|outcome| !outcome.broken.is_empty()) {
        line.push_str(&format!("\nagain: stablefs drill run {} --seed {seed}", outcome.name));
    }
    line
}

/// The result in one table.
fn table(summary: &Summary) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "scenario",
        "faults",
        "detected",
        "blocks healed",
        "longest stall",
        "(before)",
        "calls",
        "errors",
        "s",
        "verdict",
    ]);
    for outcome in &summary.scenarios {
        let seen = &outcome.applications;
        let injected = outcome.events.iter().filter(|event| event.kind == drill::judge::Kind::Injected).count();
        let slowest = outcome.detected_after_ms.iter().max();
        let excused = match (seen.errors_while_dead, seen.refused_for_space) {
            (0, 0) => String::new(),
            (0, refused) => format!(" ({refused} ENOSPC)"),
            (dead, _) => format!(" ({dead} while dead)"),
        };
        if let Some(reason) = &outcome.reason {
            table.add_row([
                &outcome.name,
                "",
                "",
                "",
                "",
                "",
                "",
                "",
                "",
                &format!("{}: {reason}", outcome.verdict.name()),
            ]);
            continue;
        }
        table.add_row([
            outcome.name.clone(),
            injected.to_string(),
            slowest.map_or("never".into(), |ms| format!("{ms} ms")),
            outcome.blocks_healed.to_string(),
            format!("{} ms", seen.longest.ms),
            format!("{} ms", seen.longest_before.ms),
            seen.calls.to_string(),
            format!("{}{excused}", seen.errors),
            format!("{:.1}", outcome.seconds),
            outcome.verdict.name().to_owned(),
        ]);
    }
    for column in 1..9 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A table without blanks at the ends of its lines.
fn trimmed(table: &Table) -> String {
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// How it goes: lines for what happened, and on a terminal one that changes.
struct Screen {
    json: bool,
    bar: Option<ProgressBar>,
    name: String,
}

impl Screen {
    fn line(&self, text: &str) {
        match (&self.bar, self.json) {
            (_, true) => {}
            (Some(bar), _) => bar.suspend(|| say(text)),
            (None, _) => say(text),
        }
    }
    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Tell for Screen {
    fn begin(&mut self, scenario: &dyn Scenario) {
        self.name = scenario.name().to_owned();
        self.line(&format!("\n==> {}: {}", scenario.name(), scenario.about()));
        let bar = ProgressBar::new_spinner(); // draws to standard error, and only to a terminal
        bar.enable_steady_tick(Duration::from_millis(200));
        self.bar = Some(bar);
    }
    fn event(&mut self, event: &Event) {
        self.line(&format!("{:7.2} s  {:8}  {}", event.at_ms as f64 / 1000.0, event.kind.name(), event.text));
    }
    fn progress(&mut self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {text}", self.name));
        }
    }
    fn end(&mut self, outcome: &Outcome) {
        self.clear();
        if let Some(reason) = &outcome.reason {
            self.line(&format!("    skipped: {reason}"));
            return;
        }
        let seen = &outcome.applications;
        self.line(&format!(
            "    longest stall {} ms ({}), {} calls, {} errors",
            seen.longest.ms, seen.longest.call, seen.calls, seen.errors
        ));
        // The others were told when they happened.
        let told = |line: &&String| outcome.events.iter().any(|event| event.text == **line);
        outcome.broken.iter().filter(|line| !told(line)).for_each(|line| self.line(&format!("    BROKEN    {line}")));
        self.line(&format!("    {}", outcome.verdict.name()));
    }
}
