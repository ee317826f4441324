//! What was measured, as a table for people or as JSON for programs.

use std::fmt::Write;

use serde_json::{Map, Value, json};

/// One figure.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// A word.
    Text(String),
    /// A count.
    Count(u64),
    /// A measured number.
    Number(f64),
    /// Not measured.
    Missing,
}

impl From<&str> for Cell {
    fn from(s: &str) -> Self {
        Cell::Text(s.to_string())
    }
}

impl From<String> for Cell {
    fn from(s: String) -> Self {
        Cell::Text(s)
    }
}

impl From<u64> for Cell {
    fn from(n: u64) -> Self {
        Cell::Count(n)
    }
}

impl From<u32> for Cell {
    fn from(n: u32) -> Self {
        Cell::Count(n.into())
    }
}

impl From<f64> for Cell {
    fn from(n: f64) -> Self {
        if n.is_finite() { Cell::Number(n) } else { Cell::Missing }
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Cell::Missing, Into::into)
    }
}

impl Cell {
    fn text(&self) -> String {
        match self {
            Cell::Text(s) => s.clone(),
            Cell::Count(n) => n.to_string(),
            Cell::Number(n) => number(*n),
            Cell::Missing => "-".into(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Cell::Text(s) => json!(s),
            Cell::Count(n) => json!(n),
            Cell::Number(n) => json!(n),
            Cell::Missing => Value::Null,
        }
    }
}

/// Three significant digits are as many as such measurements have.
fn number(n: f64) -> String {
    match n.abs() {
        a if a >= 100.0 => format!("{n:.0}"),
        a if a >= 10.0 => format!("{n:.1}"),
        a if a >= 1.0 => format!("{n:.2}"),
        _ => format!("{n:.3}"),
    }
}

/// A report: facts about the run, and rows of figures.
#[derive(Debug, Clone, Default)]
pub struct Report {
    title: String,
    facts: Vec<(String, Cell)>,
    columns: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Report {
    /// An empty one. A column's name says its unit.
    pub fn new(title: &str, columns: &[&'static str]) -> Self {
        Report { title: title.into(), columns: columns.to_vec(), ..Report::default() }
    }

    /// Adds a fact about the run.
    pub fn fact(&mut self, name: &str, value: impl Into<Cell>) {
        self.facts.push((name.into(), value.into()));
    }

    /// Adds a row; a cell that is missing at its end is "not measured".
    pub fn row(&mut self, mut cells: Vec<Cell>) {
        cells.resize(self.columns.len(), Cell::Missing);
        self.rows.push(cells);
    }

    /// The figure in `column` of row `row`.
    pub fn cell(&self, row: usize, column: &str) -> Option<&Cell> {
        let at = self.columns.iter().position(|c| *c == column)?;
        self.rows.get(row)?.get(at)
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// As JSON: `{"title", "facts": {…}, "rows": [{column: value}]}`.
    pub fn json(&self) -> Value {
        let facts: Map<String, Value> = self.facts.iter().map(|(k, v)| (k.clone(), v.json())).collect();
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|r| {
                self.columns
                    .iter()
                    .zip(r)
                    .map(|(c, v)| (c.to_string(), v.json()))
                    .collect::<Map<_, _>>()
                    .into()
            })
            .collect();
        json!({"title": self.title, "facts": facts, "rows": rows})
    }

    /// As a table in Markdown, its columns aligned; columns that no row has are left out.
    pub fn table(&self) -> String {
        let mut out = format!("{}\n", self.title);
        for (name, value) in &self.facts {
            let _ = writeln!(out, "  {name}: {}", value.text());
        }
        out.push('\n');
        let used: Vec<usize> =
            (0..self.columns.len()).filter(|i| self.rows.iter().any(|r| r[*i] != Cell::Missing)).collect();
        let texts: Vec<Vec<String>> =
            self.rows.iter().map(|r| used.iter().map(|i| r[*i].text()).collect()).collect();
        let heads: Vec<&str> = used.iter().map(|i| self.columns[*i]).collect();
        let widths: Vec<usize> = (0..used.len())
            .map(|i| {
                texts
                    .iter()
                    .map(|r| r[i].chars().count())
                    .chain([heads[i].chars().count(), 3])
                    .max()
                    .unwrap_or(3)
            })
            .collect();
        let mut line = |cells: Vec<&str>| {
            for (cell, width) in cells.iter().zip(&widths) {
                let _ = write!(out, "| {cell:<width$} ");
            }
            out.push_str("|\n");
        };
        line(heads);
        let rules: Vec<String> = widths.iter().map(|w| "-".repeat(*w)).collect();
        line(rules.iter().map(String::as_str).collect());
        for row in &texts {
            line(row.iter().map(String::as_str).collect());
        }
        out
    }
}

/// Adds what machine it was, and how busy.
pub fn machine(report: &mut Report) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    report.fact("processor", model.trim_start_matches(['\t', ' ', ':']));
    let cores = std::thread::available_parallelism().map_or(0, |n| n.get() as u64);
    report.fact("cores", cores);
    report.fact("kernel", read("/proc/sys/kernel/osrelease").trim());
    report.fact("load average before", read("/proc/loadavg").split(' ').next().unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut r = Report::new("puts", &["writers", "per second", "p99 ms", "note"]);
        r.fact("cores", 2u64);
        r.row(vec![16u64.into(), 1234.56.into(), 0.01234.into()]);
        r.row(vec![64u64.into(), f64::NAN.into(), 12.34.into()]);
        r
    }

    #[test]
    fn table_is_aligned_and_leaves_out_empty_columns() {
        let expected = "\
puts
  cores: 2

| writers | per second | p99 ms |
| ------- | ---------- | ------ |
| 16      | 1235       | 0.012  |
| 64      | -          | 12.3   |
";
        assert_eq!(report().table(), expected);
    }

    #[test]
    fn json_names_each_figure() {
        assert_eq!(
            report().json(),
            json!({"title": "puts", "facts": {"cores": 2}, "rows": [
                {"writers": 16, "per second": 1234.56, "p99 ms": 0.01234, "note": null},
                {"writers": 64, "per second": null, "p99 ms": 12.34, "note": null},
            ]})
        );
    }

    #[test]
    fn cells_are_found_by_name() {
        assert_eq!(report().cell(0, "writers"), Some(&Cell::Count(16)));
        assert_eq!(report().cell(2, "writers"), None);
        assert_eq!(report().cell(0, "nothing"), None);
    }
}
