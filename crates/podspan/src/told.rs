//! What was said already: the log tells of a problem once, and once more when it has mended.

use std::collections::BTreeSet;
use std::fmt::Display;

use crate::log::Fact;

/// How many lines of one kind one look may write; a cluster has ten thousand routes.
const LINES: usize = 20;

/// The problems of the last look.
#[derive(Debug, Default)]
pub struct Told {
    problems: BTreeSet<String>,
}

impl Told {
    /// Takes the problems of a look and gives the facts to log: those that are new, and those that have mended.
    pub fn facts(&mut self, problems: BTreeSet<String>) -> Vec<Fact> {
        let mut new = Lines::default();
        problems
            .difference(&self.problems)
            .for_each(|problem| new.push(problem));
        let mut mended = Lines::default();
        self.problems
            .difference(&problems)
            .for_each(|gone| mended.push(gone));
        self.problems = problems;
        let mut facts = new.finish("problems", Fact::Problem);
        facts.extend(mended.finish("problems mended", Fact::Mended));
        facts
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

    /// The facts to log, each a line; `what` names the rest.
    pub fn finish(self, what: &str, fact: fn(String) -> Fact) -> Vec<Fact> {
        let mut facts: Vec<_> = self.first.into_iter().map(fact).collect();
        if self.more > 0 {
            let more = self.more;
            let rest = format!("and {more} more {what}: see podspan status");
            facts.push(Fact::Said(rest));
        }
        facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(told: &mut Told, problems: &[&str]) -> Vec<String> {
        let problems = problems.iter().map(|&problem| problem.to_owned()).collect();
        told.facts(problems).iter().map(Fact::to_string).collect()
    }

    #[test]
    fn a_problem_is_told_once_and_when_it_has_mended() {
        let mut told = Told::default();
        assert_eq!(lines(&mut told, &["a", "b"]), ["a", "b"]);
        assert_eq!(lines(&mut told, &["a", "b"]), [""; 0]);
        assert_eq!(lines(&mut told, &["b", "c"]), ["c", "mended: a"]);
        assert_eq!(lines(&mut told, &[]), ["mended: b", "mended: c"]);
        assert_eq!(lines(&mut told, &["a"]), ["a"]);
    }

    #[test]
    fn ten_thousand_problems_are_not_ten_thousand_lines() {
        let many: BTreeSet<_> = (0..10_000).map(|n| format!("{n}")).collect();
        let facts = Told::default().facts(many);
        assert_eq!(facts.len(), LINES + 1);
        let rest = Fact::Said("and 9980 more problems: see podspan status".into());
        assert_eq!(facts[LINES], rest);
    }
}
