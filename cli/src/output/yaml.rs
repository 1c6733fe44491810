//! JSON values as YAML: block style, strings quoted when YAML could read them as something else.

use serde_json::Value;

/// The document, ending with a line's end.
pub fn yaml(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(_) | Value::Array(_) if !is_empty(value) => block(&mut out, value, 0),
        _ => {
            out.push_str(&scalar(value));
            out.push('\n');
        }
    }
    out
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => true,
    }
}

fn block(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                indent(out, depth);
                entry(out, key, inner, depth);
            }
        }
        Value::Array(list) => {
            for inner in list {
                indent(out, depth);
                item(out, inner, depth);
            }
        }
        _ => {}
    }
}

/// `key: value`, the key already indented.
fn entry(out: &mut String, key: &str, value: &Value, depth: usize) {
    out.push_str(&text(key));
    out.push(':');
    if is_empty(value) {
        out.push(' ');
        out.push_str(&scalar(value));
        out.push('\n');
    } else {
        out.push('\n');
        block(out, value, if value.is_array() { depth } else { depth + 1 });
    }
}

/// `- value`, already indented; an object's first key follows the dash.
fn item(out: &mut String, value: &Value, depth: usize) {
    out.push_str("- ");
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (nth, (key, inner)) in map.iter().enumerate() {
                if nth > 0 {
                    indent(out, depth + 1);
                }
                entry(out, key, inner, depth + 1);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for (nth, inner) in list.iter().enumerate() {
                if nth > 0 {
                    indent(out, depth + 1);
                }
                item(out, inner, depth + 1);
            }
        }
        _ => {
            out.push_str(&scalar(value));
            out.push('\n');
        }
    }
}

fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n("  ", depth));
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(string) => text(string),
        Value::Array(_) => "[]".to_owned(),
        Value::Object(_) => "{}".to_owned(),
    }
}

/// A string bare when nothing in YAML could take it for more, else as JSON's, which YAML reads.
fn text(string: &str) -> String {
    const WORDS: [&str; 10] = [
        "null", "true", "false", "yes", "no", "on", "off", "y", "n", "~",
    ];
    let plain_char = |c: char| c.is_ascii_alphanumeric() || "-_./@+".contains(c);
    let starts_well = string.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '_');
    let is_word = WORDS.contains(&string.to_ascii_lowercase().as_str());
    if starts_well && !is_word && string.chars().all(plain_char) {
        string.to_owned()
    } else {
        Value::String(string.to_owned()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_document() {
        let value = json!({
            "name": "web", "port": 80, "empty": [], "none": null, "yes": "no", "v": "1.0",
            "env": [{"name": "A", "value": "b: c"}, {"name": "B", "value": ""}],
            "nested": {"list": [[1, 2], []]},
        });
        insta::assert_snapshot!(yaml(&value));
    }

    #[test]
    fn what_is_written_reads_back() {
        for string in [
            "",
            "a b",
            "1e3",
            "0x1F",
            "nUll",
            "-",
            "#x",
            "é",
            "a:b",
            "2024-01-01",
            "\n",
        ] {
            let value = json!({"k": string, "l": [{"a": string}]});
            let back: Value = serde_saphyr::from_str(&yaml(&value)).unwrap();
            assert_eq!(back, value, "{string:?}");
        }
    }
}
