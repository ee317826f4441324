//! `plot`: one column of several reports as bars, in SVG.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::args::Plot;

/// Widths and heights in pixels.
const LABELS: f64 = 200.0;
const BARS: f64 = 440.0;
const NUMBERS: f64 = 80.0;
const BAR: f64 = 16.0;
const GAP: f64 = 12.0;
const HEAD: f64 = 56.0;
/// One colour a report, told apart by people who see colours differently, too.
const COLOURS: [&str; 4] = ["#4477aa", "#ee7733", "#228833", "#aa3377"];
/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// The figures of one report, by label.
struct Series {
    name: String,
    figures: Vec<(String, f64)>,
}

/// Reads the reports and draws them.
pub fn run(args: &Plot) -> Result<String> {
    let mut all = Vec::new();
    for report in &args.reports {
        let (name, path) = report.split_once('=').with_context(|| format!("{report:?} is not NAME=FILE"))?;
        let value = read(Path::new(path)).with_context(|| path.to_string())?;
        let figures = figures(&value, &args.label, &args.column);
        if figures.is_empty() {
            bail!("{path}: no row has the column {:?} and all of {:?}", args.column, args.label);
        }
        all.push(Series { name: name.into(), figures });
    }
    if all.len() > COLOURS.len() {
        bail!("at most {} reports can be told apart", COLOURS.len());
    }
    Ok(draw(args.title.as_deref().unwrap_or(&args.column), &all, args.log))
}

fn read(path: &Path) -> Result<Value> {
    if std::fs::metadata(path)?.len() > MAX_FILE {
        bail!("too large for a report");
    }
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

fn figures(report: &Value, labels: &[String], column: &str) -> Vec<(String, f64)> {
    let rows = report["rows"].as_array().map_or(&[][..], Vec::as_slice);
    let figure = |row: &Value| {
        let parts: Option<Vec<String>> = labels
            .iter()
            .map(|l| match &row[l.as_str()] {
                Value::Null => None,
                Value::String(s) => Some(s.clone()),
                other => Some(other.to_string()),
            })
            .collect();
        Some((parts?.join(", "), row[column].as_f64().filter(|n| n.is_finite() && *n >= 0.0)?))
    };
    rows.iter().filter_map(figure).collect()
}

/// How long bars are.
struct Scale {
    log: bool,
    least: f64,
    most: f64,
}

impl Scale {
    fn new(all: &[Series], log: bool) -> Scale {
        let values = || all.iter().flat_map(|s| s.figures.iter().map(|(_, n)| *n)).filter(|n| *n > 0.0);
        let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
        // On a logarithmic scale the smallest is a tenth of the whole, not nothing.
        Scale { log, least, most }
    }

    fn width(&self, n: f64) -> f64 {
        if n <= 0.0 || self.most <= 0.0 {
            return 0.0;
        }
        if !self.log || self.least >= self.most {
            return BARS * n / self.most;
        }
        BARS * (0.1 + 0.9 * (n / self.least).ln() / (self.most / self.least).ln())
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn shown(n: f64) -> String {
    match n {
        n if n >= 100.0 => format!("{n:.0}"),
        n if n >= 10.0 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}

fn draw(title: &str, all: &[Series], log: bool) -> String {
    let scale = Scale::new(all, log);
    let mut labels: Vec<&str> = Vec::new();
    for (label, _) in all.iter().flat_map(|s| &s.figures) {
        if !labels.contains(&label.as_str()) {
            labels.push(label);
        }
    }
    let group = BAR * all.len() as f64 + GAP;
    let (width, height) = (LABELS + BARS + NUMBERS, HEAD + group * labels.len() as f64);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let scale_word = if log { " (logarithmic)" } else { "" };
    // Writing to a String cannot fail.
    let _ = writeln!(out, "<text x=\"8\" y=\"20\" font-weight=\"bold\">{}{scale_word}</text>", escape(title));
    for (i, series) in all.iter().enumerate() {
        let x = 8.0 + 180.0 * i as f64;
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"30\" width=\"12\" height=\"12\" fill=\"{}\"/><text x=\"{}\" y=\"41\">{}</text>",
            COLOURS[i],
            x + 18.0,
            escape(&series.name)
        );
    }
    for (row, label) in labels.iter().enumerate() {
        let top = HEAD + group * row as f64;
        let middle = top + BAR * all.len() as f64 / 2.0 + 4.0;
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>",
            LABELS - 8.0,
            escape(label)
        );
        for (i, series) in all.iter().enumerate() {
            let Some((_, n)) = series.figures.iter().find(|(l, _)| l == label) else { continue };
            let (y, width) = (top + BAR * i as f64, scale.width(*n));
            let _ = writeln!(
                out,
                "<rect x=\"{LABELS}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"{}\"/><text x=\"{:.1}\" y=\"{}\">{}</text>",
                BAR - 2.0,
                COLOURS[i],
                LABELS + width + 5.0,
                y + 12.0,
                shown(*n)
            );
        }
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report() -> Value {
        json!({"rows": [
            {"what": "create <pod>", "clients": 16, "CPU": 0.5},
            {"what": "get pod", "clients": 16, "CPU": 0.05},
            {"what": "list", "clients": 16, "CPU": null},
        ]})
    }

    #[test]
    fn rows_without_the_figure_are_left_out() {
        let labels = ["what".to_string(), "clients".to_string()];
        let found = figures(&report(), &labels, "CPU");
        assert_eq!(found, [("create <pod>, 16".to_string(), 0.5), ("get pod, 16".to_string(), 0.05)]);
        assert!(figures(&report(), &["no such".to_string()], "CPU").is_empty());
        assert!(figures(&json!("nonsense"), &labels, "CPU").is_empty());
    }

    #[test]
    fn bars_are_as_long_as_their_figures() {
        let series = |name: &str, figures: &[(&str, f64)]| Series {
            name: name.into(),
            figures: figures.iter().map(|(l, n)| ((*l).to_string(), *n)).collect(),
        };
        let all = [series("a", &[("x", 1.0), ("y", 100.0)]), series("b", &[("x", 10.0)])];
        let linear = Scale::new(&all, false);
        assert_eq!((linear.width(100.0), linear.width(10.0), linear.width(0.0)), (BARS, BARS / 10.0, 0.0));
        let log = Scale::new(&all, true);
        assert!((log.width(100.0) - BARS).abs() < 1e-9 && (log.width(10.0) - BARS * 0.55).abs() < 1e-9);
        assert!((log.width(1.0) - BARS * 0.1).abs() < 1e-9);
        let svg = draw("a < b", &all, false);
        assert_eq!((svg.matches("<rect").count(), svg.contains("a &lt; b")), (6, true));
        assert!(draw("nothing", &[], true).ends_with("</svg>\n"));
    }
}
