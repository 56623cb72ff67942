//! Medians, percentiles, ratios, and how they are written.

use std::time::Duration;

/// Of each round one value, in the order of the rounds.
#[derive(Debug, Clone)]
pub struct Series(Vec<f64>);

impl Series {
    pub fn new(values: Vec<f64>) -> Self {
        Self(values)
    }

    /// In milliseconds.
    pub fn times(times: impl IntoIterator<Item = Duration>) -> Self {
        let milliseconds = times.into_iter().map(|time| time.as_secs_f64() * 1000.0);
        Self::new(milliseconds.collect())
    }

    pub fn counts(counts: impl IntoIterator<Item = usize>) -> Self {
        Self(counts.into_iter().map(|count| count as f64).collect())
    }

    pub fn median(&self) -> f64 {
        self.at(0.5)
    }

    pub fn p99(&self) -> f64 {
        self.at(0.99)
    }

    /// The median of the ratios of each round: what disturbs a round disturbs both.
    pub fn ratio_to(&self, other: &Self) -> f64 {
        let pairs = self.0.iter().zip(&other.0);
        Self(pairs.map(|(mine, others)| mine / others).collect()).median()
    }

    /// The value at that part of the sorted list; nothing was measured where it is not a number.
    fn at(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1) as f64;
        let number = (last * part).round() as usize;
        sorted.get(number).copied().unwrap_or(f64::NAN)
    }
}

/// With three digits or all that are before the point; a dash where nothing was measured.
pub fn digits(value: f64) -> String {
    match value {
        value if value.is_nan() => "–".into(),
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => thousands(value.round() as usize),
    }
}

/// `1,234,567`.
pub fn thousands(number: usize) -> String {
    let text = number.to_string();
    let mut grouped = String::new();
    for (place, digit) in text.chars().enumerate() {
        if place > 0 && (text.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
