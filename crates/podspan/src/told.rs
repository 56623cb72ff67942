//! What was said already: the log tells of a problem once, and once more when it has mended.

use std::collections::BTreeSet;

/// How many lines of one kind one look may write; a cluster has ten thousand routes.
pub const LINES: usize = 20;

/// The problems of the last look.
#[derive(Debug, Default)]
pub struct Told {
    problems: BTreeSet<String>,
}

impl Told {
    /// Takes the problems of a look and gives the lines to log: those that are new, and those that have mended.
    pub fn lines(&mut self, problems: BTreeSet<String>) -> Vec<String> {
        let new = problems.difference(&self.problems).map(String::clone);
        let mended = self
            .problems
            .difference(&problems)
            .map(|gone| format!("mended: {gone}"));
        let lines = shortened(new.collect(), "problems");
        let lines = lines
            .into_iter()
            .chain(shortened(mended.collect(), "problems mended"));
        let lines = lines.collect();
        self.problems = problems;
        lines
    }
}

/// The first lines, and how many there are beside.
pub fn shortened(mut lines: Vec<String>, what: &str) -> Vec<String> {
    if let Some(more @ 1..) = lines.len().checked_sub(LINES) {
        lines.truncate(LINES);
        lines.push(format!("and {more} more {what}: see podspan status"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(problems: &[&str]) -> BTreeSet<String> {
        problems.iter().map(|&problem| problem.to_owned()).collect()
    }

    #[test]
    fn a_problem_is_told_once_and_when_it_has_mended() {
        let mut told = Told::default();
        assert_eq!(told.lines(set(&["a", "b"])), ["a", "b"]);
        assert_eq!(told.lines(set(&["a", "b"])), [""; 0]);
        assert_eq!(told.lines(set(&["b", "c"])), ["c", "mended: a"]);
        assert_eq!(told.lines(set(&[])), ["mended: b", "mended: c"]);
        assert_eq!(told.lines(set(&["a"])), ["a"]);
    }

    #[test]
    fn ten_thousand_problems_are_not_ten_thousand_lines() {
        let many: BTreeSet<_> = (0..10_000).map(|n| format!("{n}")).collect();
        let lines = Told::default().lines(many);
        assert_eq!(lines.len(), LINES + 1);
        assert_eq!(lines[LINES], "and 9980 more problems: see podspan status");
    }
}
