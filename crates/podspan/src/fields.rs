//! Reading a TOML table key by key, so that every wrong value is told with its file, its key and what would be right.
//!
//! All faults of a table are gathered, not only the first. A key that nobody asked for is a fault too: a mistyped key that
//! is silently ignored is worse than an error.

use std::path::Path;

use anyhow::anyhow;
use toml::{Table, Value};

use crate::refusal::{Refusal, Source};

/// A file's text, or a part of it that can be read by itself.
#[derive(Debug, Clone, Copy)]
pub struct Section<'a> {
    /// The line that it begins with, the file's first being 1.
    pub line: usize,
    /// The text.
    pub text: &'a str,
}

impl<'a> Section<'a> {
    /// All of the file.
    pub fn whole(text: &'a str) -> Self {
        Self { line: 1, text }
    }
}

/// The top level table of a text.
///
/// # Errors
/// No TOML: the line and what the parser expected.
pub fn parse_toml(file: &Path, section: &Section<'_>) -> anyhow::Result<Table> {
    let Section { line, text } = section;
    text.parse::<Table>().map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = line
            + text
                .bytes()
                .take(start)
                .filter(|byte| *byte == b'\n')
                .count();
        let message = error.message().trim().replace('\n', ", ");
        anyhow!("{}: line {line}: {message}", file.display())
    })
}

/// A table that is being read.
pub struct Fields<'a> {
    file: &'a Path,
    /// What stands before each key, such as `nodes[3].`, and behind it, such as ` (node4)`.
    before: String,
    behind: String,
    table: Table,
    refusals: Vec<Refusal>,
}

impl<'a> Fields<'a> {
    /// Begins with a file's top level.
    pub fn new(file: &'a Path, table: Table) -> Self {
        Self::inside(file, table, String::new())
    }

    /// Begins with a table inside; `before` stands before each of its keys when one is told.
    pub fn inside(file: &'a Path, table: Table, before: String) -> Self {
        Self {
            file,
            before,
            behind: String::new(),
            table,
            refusals: Vec::new(),
        }
    }

    /// From now on, faults name the node.
    pub fn name_node(&mut self, name: Option<&str>) {
        self.behind = name.map(|name| format!(" ({name})")).unwrap_or_default();
    }

    /// True as long as no fault was found.
    pub fn is_right(&self) -> bool {
        self.refusals.is_empty()
    }

    /// The value of the key, if it is there and right; `parse` says what would be right.
    pub fn take<T>(&mut self, key: &str, parse: impl Fn(&Value) -> Result<T, String>) -> Option<T> {
        let value = self.table.remove(key)?;
        match parse(&value) {
            Ok(parsed) => Some(parsed),
            Err(fix) => {
                self.refuse(key, value.to_string(), fix);
                None
            }
        }
    }

    /// The same of a key that must be there.
    pub fn take_required<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&Value) -> Result<T, String>,
    ) -> Option<T> {
        if !self.table.contains_key(key) {
            self.refuse(key, "", "is missing");
        }
        self.take(key, parse)
    }

    /// The values of a list, those that are right; none when the key is absent.
    pub fn take_list<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&Value) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let values = match self.table.remove(key)? {
            Value::Array(values) => values,
            other => {
                self.refuse(key, other.to_string(), "must be a list: [\"…\", \"…\"]");
                return Some(Vec::new());
            }
        };
        let mut parsed = Vec::with_capacity(values.len());
        for (index, value) in values.into_iter().enumerate() {
            match parse(&value) {
                Ok(right) => parsed.push(right),
                Err(fix) => self.refuse(&format!("{key}[{index}]"), value.to_string(), fix),
            }
        }
        Some(parsed)
    }

    /// Notes a fault of `key`.
    pub fn refuse(&mut self, key: &str, value: impl Into<String>, fix: impl Into<String>) {
        let Self { before, behind, .. } = &self;
        self.refusals.push(Refusal {
            source: Source::File(self.file).to_string(),
            key: format!("{before}{key}{behind}"),
            value: value.into(),
            fix: fix.into(),
        });
    }

    /// All faults, those of keys that nobody asked for included; `known` is what could have been meant.
    pub fn finish(mut self, known: &str) -> Vec<Refusal> {
        for (key, value) in std::mem::take(&mut self.table) {
            self.refuse(
                &key,
                value.to_string(),
                format!("no such key; there are {known}"),
            );
        }
        self.refusals
    }
}

/// Parses a text by its type, whose error says what would be right.
///
/// # Errors
/// What would be right.
pub fn text<T>(value: &Value) -> Result<T, String>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let Value::String(text) = value else {
        return Err("must be a text in quotes".to_owned());
    };
    text.parse().map_err(|error: T::Err| error.to_string())
}
