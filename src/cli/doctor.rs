//! `doctor`: what ails an instance, or the relay, and what to do about it.

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    api::{Api, parsed},
    links, print,
};

/// Where the README explains a rung.
const README: &str = "README.md#doctor";

#[derive(Deserialize)]
struct Report {
    subject: String,
    verdict: String,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    rung: String,
    verdict: String,
    code: String,
    message: String,
    hint: Option<String>,
}

/// `false` if anything is broken.
pub(super) async fn run(
    api: &Api,
    instance: Option<&str>,
    all: bool,
    as_json: bool,
) -> anyhow::Result<bool> {
    let mut wishes = Vec::new();
    if all || instance.is_none() {
        wishes.push(json!({}));
    }
    wishes.extend(instance.map(|url| json!({ "instance_url": url })));
    if all {
        let mut instances: Vec<String> = links::all(api)
            .await?
            .into_iter()
            .map(|link| link.instance_url)
            .collect();
        instances.sort();
        instances.dedup();
        let others = instances
            .iter()
            .filter(|url| Some(url.as_str()) != instance);
        wishes.extend(others.map(|url| json!({ "instance_url": url })));
    }
    let mut whole = true;
    let mut answers = Vec::new();
    for wish in wishes {
        let answer = match api.call(Method::POST, "/api/v1/doctor", Some(&wish)).await {
            Ok(answer) => answer,
            // One that can't be looked at must not hide the others.
            Err(error) if all => {
                let subject = wish.get("instance_url").and_then(Value::as_str);
                eprintln!("{}: FAIL\n  {error}\n", subject.unwrap_or("relay"));
                whole = false;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let report: Report = parsed(answer.clone())?;
        whole &= report.verdict != "fail";
        if as_json {
            answers.push(answer);
        } else {
            // One after the other, as they come: with many instances that takes a while.
            report.show()?;
        }
    }
    if as_json {
        print::json(&Value::Array(answers))?;
    }
    Ok(whole)
}

impl Report {
    fn show(&self) -> anyhow::Result<()> {
        print::line(format!("{}: {}", self.subject, word(&self.verdict)))?;
        for step in &self.steps {
            print::line(format!(
                "  {:<7} {:<17} {}",
                word(&step.verdict),
                step.rung,
                step.message
            ))?;
            if step.verdict == "ok" || step.code == "not_reached" {
                continue;
            }
            let cure = step.hint.iter().map(|hint| format!("-> {hint}"));
            let more = format!("({}; {README})", step.code);
            for line in cure.chain([more]) {
                print::line(format!("  {:<25} {line}", ""))?;
            }
        }
        print::line("")?;
        Ok(())
    }
}

/// What must be seen stands out.
fn word(verdict: &str) -> &str {
    match verdict {
        "fail" => "FAIL",
        "unknown" => "-",
        other => other,
    }
}
