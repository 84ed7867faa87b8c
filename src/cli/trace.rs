//! `trace`: what happened to one request or delivery.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::{
    api::{Api, parsed},
    print,
};

/// Everything with one id, and what it caused.
#[derive(Deserialize)]
struct Found {
    parts: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    what: String,
    text: String,
    id: String,
    trace_id: String,
    started_at: Timestamp,
    hops: Vec<Hop>,
    hops_left_out: usize,
}

#[derive(Deserialize)]
struct Hop {
    after_us: u64,
    hop: String,
    text: String,
    #[serde(default)]
    hint: Option<String>,
    #[serde(default)]
    checks: Vec<Check>,
}

/// What a token was looked at for.
#[derive(Deserialize)]
struct Check {
    name: String,
    value: Value,
    held: Option<bool>,
}

pub(super) async fn show(api: &Api, id: &str, as_json: bool) -> anyhow::Result<bool> {
    // Ids are hexadecimal; anything else would be another address.
    let id: String = id.chars().filter(char::is_ascii_hexdigit).collect();
    let answer = api.get(&format!("/api/v1/trace/{id}")).await?;
    if as_json {
        print::json(&answer)?;
        return Ok(true);
    }
    let found: Found = parsed(answer)?;
    for (at, part) in found.parts.iter().enumerate() {
        if at > 0 {
            print::line("")?;
        }
        part.show()?;
    }
    Ok(true)
}

impl Part {
    fn show(&self) -> anyhow::Result<()> {
        let (what, text) = (&self.what, &self.text);
        print::line(format!("{what}: {text}"))?;
        let began = self.started_at;
        print::line(format!(
            "  id {}, trace id {}, began {began:.3}",
            self.id, self.trace_id
        ))?;
        let mut rows = Vec::new();
        for hop in &self.hops {
            let after = format!("{:.1} ms", hop.after_us as f64 / 1000.0);
            rows.push([after, hop.hop.clone(), hop.text.clone()]);
            let detail = |text: String| [String::new(), String::new(), text];
            for check in &hop.checks {
                let verdict = match check.held {
                    Some(true) => "held",
                    Some(false) => "DID NOT HOLD",
                    None => "not looked at",
                };
                let value = match &check.value {
                    Value::Null => String::new(),
                    Value::String(text) => format!(" {text}"),
                    other => format!(" {other}"),
                };
                rows.push(detail(format!("  {}{value}: {verdict}", check.name)));
            }
            if let Some(hint) = hop.hint.as_deref().filter(|hint| !hint.is_empty()) {
                rows.push(detail(format!("  {hint}")));
            }
        }
        print::table(["after", "hop", "what"], rows, "")?;
        if self.hops_left_out > 0 {
            print::line(format!("  and {} more hops", self.hops_left_out))?;
        }
        Ok(())
    }
}
