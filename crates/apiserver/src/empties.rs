//! Maps and lists that a client has sent empty. Validation tells them from absent ones; the canonical form does not.

use pilothouse_apimachinery::json::{Array, Map, Value};

/// A step on the way to a value.
#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

#[derive(Debug, PartialEq)]
enum Way {
    Key(String),
    Index(usize),
}

/// The empty maps and lists of a value.
#[derive(Debug, Default)]
pub struct Empties(Vec<(Vec<Way>, Value)>);

fn collect<'a>(value: &'a Value, way: &mut Vec<Step<'a>>, found: &mut Vec<(Vec<Way>, Value)>) {
    let mut keep = |way: &[Step<'_>], empty: Value| {
        let way = way.iter().map(|step| match step {
            Step::Key(key) => Way::Key((*key).to_string()),
            Step::Index(i) => Way::Index(*i),
        });
        found.push((way.collect(), empty));
    };
    match value {
        Value::Object(map) if map.is_empty() => keep(way, Value::Object(Map::new())),
        Value::Array(items) if items.is_empty() => keep(way, Value::Array(Array::new())),
        Value::Object(map) => {
            for (key, inner) in map {
                way.push(Step::Key(key));
                collect(inner, way, found);
                way.pop();
            }
        }
        Value::Array(items) => {
            for (i, inner) in items.iter().enumerate() {
                way.push(Step::Index(i));
                collect(inner, way, found);
                way.pop();
            }
        }
        _ => {}
    }
}

/// The value at the end of a way, made where it is missing; nothing where the way leads elsewhere by now.
fn reach<'v>(mut at: &'v mut Value, way: &[Way]) -> Option<&'v mut Value> {
    for step in way {
        if at.is_null() && matches!(step, Way::Key(_)) {
            *at = Value::Object(Map::new());
        }
        at = match (step, at) {
            (Way::Key(key), Value::Object(map)) => map.entry(key.as_str()).or_insert(Value::Null),
            (Way::Index(i), Value::Array(items)) => items.get_mut(*i)?,
            _ => return None,
        };
    }
    Some(at)
}

impl Empties {
    /// Those of a value.
    pub fn of(value: &Value) -> Empties {
        let mut found = Vec::new();
        collect(value, &mut Vec::new(), &mut found);
        Empties(found)
    }

    /// Puts them back where the canonical form has left them out.
    pub fn restore(self, value: &mut Value) {
        for (way, empty) in self.0 {
            if let Some(place) = reach(value, &way).filter(|place| place.is_null()) {
                *place = empty;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    #[test]
    fn come_back_and_nothing_else_does() {
        let sent =
            json!({"a": {"b": {}, "c": 1}, "d": [{"e": []}, {"f": 2}], "g": {}, "h": {"i": {"j": []}}});
        let empties = Empties::of(&sent);
        let mut canonical = json!({"a": {"c": 1}, "d": [{}, {"f": 2}], "g": {}});
        empties.restore(&mut canonical);
        assert_eq!(canonical, sent);
        let mut other = json!({"a": 1, "d": []});
        Empties::of(&sent).restore(&mut other);
        assert_eq!(other, json!({"a": 1, "d": [], "g": {}, "h": {"i": {"j": []}}}));
    }
}
