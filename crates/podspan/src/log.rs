//! What the agent and the router say while they run: facts, a line each, to standard error.
//!
//! As text for people, without a time, which the journal adds; or as JSON for programs (`log = "json"`). A line is written
//! in one piece, so that those of two threads never mix. That nobody reads them must not end us.

use std::fmt;
use std::io::Write as _;

use serde::Serialize;

/// How facts are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object a line: `time`, `level`, `message`, `what`, and `change` or `error` where the fact is about one.
    Json,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// Something of this program's own life.
    Said(String),
    /// A change was made: the command that one would type.
    Made(String),
    /// A problem is new.
    Problem(String),
    /// A problem is gone.
    Mended(String),
}

/// Where facts go.
#[derive(Debug, Clone, Copy, Default)]
pub struct Log {
    /// How.
    pub format: Format,
}

impl Log {
    /// Writes a fact.
    pub fn tell(self, fact: &Fact) {
        let mut line = match self.format {
            Format::Text => fact.to_string(),
            Format::Json => fact.to_json(jiff::Timestamp::now()),
        };
        line.push('\n');
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    /// Writes something of this program's own life.
    pub fn say(self, what: impl fmt::Display) {
        self.tell(&Fact::Said(what.to_string()));
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Said(text) | Self::Made(text) | Self::Problem(text) => f.write_str(text),
            Self::Mended(problem) => write!(f, "mended: {problem}"),
        }
    }
}

#[derive(Serialize)]
struct Object<'a> {
    time: String,
    level: &'a str,
    message: String,
    what: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl Fact {
    fn to_json(&self, now: jiff::Timestamp) -> String {
        let (level, what, change, error) = match self {
            Self::Said(_) => ("info", "said", None, None),
            Self::Made(change) => ("info", "made", Some(change.as_str()), None),
            Self::Problem(problem) => ("error", "problem", None, Some(problem.as_str())),
            Self::Mended(problem) => ("info", "mended", None, Some(problem.as_str())),
        };
        let object = Object {
            // Three digits always: what sorts as text sorts by time.
            time: format!("{now:.3}"),
            level,
            message: self.to_string(),
            what,
            change,
            error,
        };
        // Texts alone always have a form in JSON.
        serde_json::to_string(&object).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_fact_is_a_line_for_people_or_an_object_for_programs() {
        let now: jiff::Timestamp = "2026-11-24T13:00:00.5Z".parse().unwrap();
        let table = [
            (
                Fact::Said("started".into()),
                "started",
                json!({"level": "info", "what": "said"}),
            ),
            (
                Fact::Made("ip route add 10.0.2.0/24".into()),
                "ip route add 10.0.2.0/24",
                json!({"level": "info", "what": "made", "change": "ip route add 10.0.2.0/24"}),
            ),
            (
                Fact::Problem("a \"b\"\nc".into()),
                "a \"b\"\nc",
                json!({"level": "error", "what": "problem", "error": "a \"b\"\nc"}),
            ),
            (
                Fact::Mended("a".into()),
                "mended: a",
                json!({"level": "info", "what": "mended", "error": "a"}),
            ),
        ];
        for (fact, text, mut object) in table {
            assert_eq!(fact.to_string(), text);
            object["time"] = "2026-11-24T13:00:00.500Z".into();
            object["message"] = text.into();
            let line = fact.to_json(now);
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), object);
        }
    }
}
