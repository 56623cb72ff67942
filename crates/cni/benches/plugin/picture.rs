//! Horizontal bars as SVG, on a linear scale from zero: a bar twice as long took twice as long.
//!
//! The card brings its own background, so that it can be read on any page, and a darker one for those who prefer it.

use std::fmt::Write;

/// A picture with its bars in groups.
pub struct Picture {
    pub title: String,
    pub subtitle: String,
    pub groups: Vec<Group>,
}

pub struct Group {
    pub title: String,
    pub bars: Vec<Bar>,
}

pub struct Bar {
    /// Who; the colour follows.
    pub name: String,
    pub colour: Colour,
    pub value: f64,
    /// The value as it is written at the end of the bar.
    pub text: String,
}

#[derive(Debug, Clone, Copy)]
pub enum Colour {
    Ours,
    Theirs,
    Floor,
}

/// All in pixels.
const WIDTH: f64 = 820.0;
const MARGIN: f64 = 24.0;
const HEAD: f64 = 78.0;
const BAR: f64 = 18.0;
const BETWEEN_BARS: f64 = 5.0;
const GROUP_TITLE: f64 = 24.0;
const BETWEEN_GROUPS: f64 = 16.0;
/// Left of the bars, for their names, and right of the longest, for its value.
const NAMES: f64 = 190.0;
const VALUES: f64 = 150.0;
/// A bar that would be shorter is still seen.
const LEAST: f64 = 1.5;

const STYLE: &str = "
  text { font: 13px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328 }
  .title { font-size: 17px; font-weight: 600 }
  .quiet { fill: #59636e }
  .group { font-weight: 600 }
  .card { fill: #ffffff; stroke: #d1d9e0 }
  .ours { fill: #0969da } .theirs { fill: #bc4c00 } .floor { fill: #818b98 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .quiet { fill: #9198a1 } .card { fill: #0d1117; stroke: #3d444d }
    .ours { fill: #4493f8 } .theirs { fill: #db6d28 }
  }
";

impl Picture {
    pub fn svg(&self) -> String {
        let longest = self.groups.iter().flat_map(|group| &group.bars);
        let longest = longest
            .map(|bar| bar.value)
            .fold(f64::MIN_POSITIVE, f64::max);
        let scale = (WIDTH - 2.0 * MARGIN - NAMES - VALUES) / longest;
        let (mut body, mut y) = (String::new(), HEAD);
        for group in &self.groups {
            text(&mut body, (MARGIN, y + 13.0), ("group", &group.title));
            y += GROUP_TITLE;
            for bar in &group.bars {
                bar.draw(&mut body, y, scale);
                y += BAR + BETWEEN_BARS;
            }
            y += BETWEEN_GROUPS - BETWEEN_BARS;
        }
        let height = y - BETWEEN_GROUPS + MARGIN;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n<title>{}</title>\n<style>{STYLE}</style>\n\
             <rect class=\"card\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"8\"/>\n",
            escaped(&self.title),
            WIDTH - 1.0,
            height - 1.0,
        );
        text(&mut svg, (MARGIN, 34.0), ("title", &self.title));
        text(&mut svg, (MARGIN, 55.0), ("quiet", &self.subtitle));
        svg + &body + "</svg>\n"
    }
}

impl Bar {
    fn draw(&self, svg: &mut String, y: f64, scale: f64) {
        let (x, length) = (MARGIN + NAMES, (self.value * scale).max(LEAST));
        let class = match self.colour {
            Colour::Ours => "ours",
            Colour::Theirs => "theirs",
            Colour::Floor => "floor",
        };
        text(svg, (MARGIN, y + 13.5), ("quiet", &self.name));
        let _ = writeln!(
            svg,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"1.5\"/>"
        );
        text(svg, (x + length + 7.0, y + 13.5), ("value", &self.text));
    }
}

fn text(svg: &mut String, (x, y): (f64, f64), (class, words): (&str, &str)) {
    let words = escaped(words);
    let _ = writeln!(
        svg,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{words}</text>"
    );
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;")
}
