//! `podspan doctor`: what on this machine keeps the pod network from working, or soon will; why it matters, and the command
//! that mends it.
//!
//! The facts are gathered once ([`facts`]); each check is a pure function of them ([`checks`]). What `podspan status` says
//! comes first. Nothing is changed. A fact that cannot be had is no finding: a doctor who guesses is worse than none.

mod checks;
mod facts;

use std::process::ExitCode;

use serde::Serialize;

use crate::config::Config;
use crate::output::{Output, columns, exit_code};
use crate::status::{Status, see, status};
use facts::Facts;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// True when nothing is wrong; warnings do not count.
    pub right: bool,
    /// In the order of a person's questions.
    pub findings: Vec<Finding>,
}

/// One thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What it is.
    pub what: String,
    /// Why it matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What mends it: a command where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// How bad a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Right,
    /// It works, but not for long or not for all.
    Warning,
    /// Something does not work.
    Wrong,
}

impl Finding {
    fn new(level: Level, what: String, (why, mend): (&str, String)) -> Self {
        Self {
            level,
            what,
            why: Some(why.to_owned()),
            mend: Some(mend),
        }
    }

    /// Something that does not work, why that matters, and what mends it.
    fn wrong(what: String, because: (&str, String)) -> Self {
        Self::new(Level::Wrong, what, because)
    }

    /// The same of something that works, but not for long or not for all.
    fn warning(what: String, because: (&str, String)) -> Self {
        Self::new(Level::Warning, what, because)
    }
}

/// Prints what is found; the exit status says whether all is right.
///
/// # Errors
/// What the kernel answered.
pub fn print_report(config: &Config, output: Output) -> anyhow::Result<ExitCode> {
    let report = examine(config)?;
    output.print(&report, Report::to_text)?;
    Ok(exit_code(report.right))
}

fn examine(config: &Config) -> anyhow::Result<Report> {
    let seen = see(config)?;
    let mut findings = from_status(status(config, &seen));
    let facts = Facts::gather(config, &seen)?;
    let found: Vec<_> = checks::ALL.iter().map(|check| check(&facts)).collect();
    let quiet = found.iter().filter(|of_check| of_check.is_empty()).count();
    findings.push(Finding {
        level: Level::Right,
        what: format!("{quiet} of {} further checks find nothing", found.len()),
        why: None,
        mend: None,
    });
    findings.extend(found.into_iter().flatten());
    Ok(Report {
        right: findings.iter().all(|found| found.level != Level::Wrong),
        findings,
    })
}

fn from_status(status: Status) -> Vec<Finding> {
    let lines = status.lines.into_iter();
    let finding = lines.map(|line| Finding {
        level: if line.right {
            Level::Right
        } else {
            Level::Wrong
        },
        what: line.what,
        why: None,
        mend: line.mend,
    });
    finding.collect()
}

impl Report {
    /// For people: a line each, and below it why it matters and what mends it.
    fn to_text(&self) -> String {
        let mut rows = Vec::new();
        for found in &self.findings {
            let word = match found.level {
                Level::Right => "right",
                Level::Warning => "WARNING",
                Level::Wrong => "WRONG",
            };
            rows.push(vec![word.to_owned(), found.what.clone()]);
            let more = [("", &found.why), ("to mend it: ", &found.mend)];
            for (before, text) in more {
                rows.extend(
                    text.iter()
                        .map(|text| vec![String::new(), format!("  {before}{text}")]),
                );
            }
        }
        columns(&rows)
    }
}
