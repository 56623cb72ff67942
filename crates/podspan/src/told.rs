//! What was said already: the log tells of a problem once, and once more when it has mended.

use std::collections::BTreeSet;
use std::fmt::Display;

/// How many lines of one kind one look may write; a cluster has ten thousand routes.
const LINES: usize = 20;

/// The problems of the last look.
#[derive(Debug, Default)]
pub struct Told {
    problems: BTreeSet<String>,
}

impl Told {
    /// Takes the problems of a look and gives the lines to log: those that are new, and those that have mended.
    pub fn lines(&mut self, problems: BTreeSet<String>) -> Vec<String> {
        let mut new = Lines::default();
        problems
            .difference(&self.problems)
            .for_each(|problem| new.push(problem));
        let mut mended = Lines::default();
        self.problems
            .difference(&problems)
            .for_each(|gone| mended.push(format_args!("mended: {gone}")));
        self.problems = problems;
        let mut lines = new.finish("problems");
        lines.extend(mended.finish("problems mended"));
        lines
    }
}

/// The first lines of one kind, and how many there are beside; only those are ever made into text.
#[derive(Debug, Default)]
pub struct Lines {
    first: Vec<String>,
    more: usize,
}

impl Lines {
    /// One more.
    pub fn push(&mut self, line: impl Display) {
        if self.first.len() < LINES {
            self.first.push(line.to_string());
        } else {
            self.more += 1;
        }
    }

    /// The lines to log; `what` names the rest.
    pub fn finish(mut self, what: &str) -> Vec<String> {
        if self.more > 0 {
            let more = self.more;
            self.first
                .push(format!("and {more} more {what}: see podspan status"));
        }
        self.first
    }
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
