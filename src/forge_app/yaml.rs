//! YAML 1.2 in block style, laid out as npm `yaml` does it: `forge register` writes the manifest anew with that, and
//! then only what it changed differs.

use serde_json::Value;

/// Writes `value` as the value of `key`, `depth` levels deep.
pub(super) fn entry(key: &str, value: &Value, depth: usize) -> String {
    let mut text = String::new();
    put_entry(key, value, depth, &mut text);
    text
}

/// A text as YAML: plain where that is the same text, else in double quotes.
pub(super) fn text(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:*".contains(c);
    let starts_plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && !["true", "false", "null", "yes", "no", "on", "off"]
            .contains(&text.to_ascii_lowercase().as_str());
    // A colon is part of a plain text as long as no blank follows, and none can.
    if starts_plain && text.chars().all(plain) && !text.ends_with(':') {
        text.to_owned()
    } else {
        // JSON strings are YAML strings (YAML 1.2.2, section 1.3).
        Value::from(text).to_string()
    }
}

fn put_entry(key: &str, value: &Value, depth: usize, out: &mut String) {
    indent(depth, out);
    out.push_str(&text(key));
    out.push(':');
    put_value(value, depth + 1, out);
}

/// Behind a colon.
fn put_value(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            out.push('\n');
            for (key, value) in object {
                put_entry(key, value, depth, out);
            }
        }
        Value::Array(array) if !array.is_empty() => {
            out.push('\n');
            for item in array {
                put_item(item, depth, out);
            }
        }
        scalar => {
            out.push(' ');
            out.push_str(&scalar_text(scalar));
            out.push('\n');
        }
    }
}

/// One of a list. Its first key stands behind the dash: what it is called, if it has a name.
fn put_item(item: &Value, depth: usize, out: &mut String) {
    indent(depth, out);
    out.push_str("- ");
    let Some(object) = item.as_object().filter(|object| !object.is_empty()) else {
        out.push_str(&scalar_text(item));
        out.push('\n');
        return;
    };
    let name = object.get_key_value("key");
    let others = object.iter().filter(|(key, _)| *key != "key");
    for (place, (key, value)) in name.into_iter().chain(others).enumerate() {
        if place > 0 {
            indent(depth + 1, out);
        }
        out.push_str(&text(key));
        out.push(':');
        put_value(value, depth + 2, out);
    }
}

fn scalar_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), text)
}

fn indent(depth: usize, out: &mut String) {
    out.push_str(&"  ".repeat(depth));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_become_blocks() {
        let value = json!([
            {"alpha": 1, "key": "a", "name": {"value": "GitLab (x)"}, "list": ["b", "*"], "none": {}},
        ]);
        assert_eq!(
            entry("m:n", &value, 1),
            "  m:n:\n    - key: a\n      alpha: 1\n      list:\n        - b\n        - \"*\"\n      name:\n        value: \"GitLab (x)\"\n      none: {}\n"
        );
    }

    #[test]
    fn what_yaml_would_read_otherwise_is_quoted() {
        for (plain, written) in [
            ("https://a.example:8443/-/x", "https://a.example:8443/-/x"),
            ("/events", "/events"),
            ("true", "\"true\""),
            ("1.0", "\"1.0\""),
            ("a: b", "\"a: b\""),
            ("a #b", "\"a #b\""),
            ("a:", "\"a:\""),
            ("*.example.com", "\"*.example.com\""),
            ("", "\"\""),
            ("say \"hi\"\n", "\"say \\\"hi\\\"\\n\""),
        ] {
            assert_eq!(text(plain), written);
        }
    }
}
