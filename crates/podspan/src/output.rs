//! How the operator's commands print: text for people, or JSON for programs (`-o json`).

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use serde::Serialize;

/// The form of what is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON value.
    Json,
}

impl Output {
    /// Prints the value: as JSON, or as the lines that `text` makes of it.
    ///
    /// # Errors
    /// What writing answered.
    pub fn print<T: Serialize>(self, value: &T, text: impl Fn(&T) -> String) -> anyhow::Result<()> {
        let mut printed = match self {
            Self::Text => text(value),
            Self::Json => serde_json::to_string_pretty(value)?,
        };
        if !printed.is_empty() && !printed.ends_with('\n') {
            printed.push('\n');
        }
        std::io::stdout()
            .write_all(printed.as_bytes())
            .context("print")
    }
}

/// The exit status of a question: 0 for yes, 1 for no; 2 is left for errors.
pub fn exit_code(yes: bool) -> ExitCode {
    if yes {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

/// Rows as columns of equal width; the last column is not filled up.
pub fn columns(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let cells: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
