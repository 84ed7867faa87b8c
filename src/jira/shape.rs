//! Answers in the shape that every GitLab digests.
//!
//! Older clients raise on an answer they did not expect, and their job fails (GitLab `lib/atlassian/jira_connect/client.rb`,
//! `lib/atlassian/jira/dev_info_client.rb`): builds, deployments and flags want a JSON object with a success, and
//! a JSON array of `{message}` with 400 and 413; development information wants an object with 400. Newer ones take
//! anything.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use crate::domain::{Endpoint, Family};

/// The body that goes to the instance for what Jira said.
pub fn for_gitlab(endpoint: Endpoint, status: StatusCode, body: Bytes) -> Bytes {
    if endpoint == Endpoint::User {
        return body;
    }
    if status.is_success() {
        return if starts_with(&body, b'{') {
            body
        } else {
            Bytes::from_static(b"{}")
        };
    }
    if !matches!(status.as_u16(), 400 | 413) {
        return body;
    }
    match endpoint {
        Endpoint::Submit(Family::Devinfo) | Endpoint::DeleteBranch => {
            if starts_with(&body, b'{') {
                body
            } else {
                json!({ "errorMessages": messages(&body) })
                    .to_string()
                    .into()
            }
        }
        _ if starts_with(&body, b'[') => body,
        _ => {
            let list: Vec<Value> = messages(&body)
                .into_iter()
                .map(|message| json!({ "message": message }))
                .collect();
            Value::from(list).to_string().into()
        }
    }
}

fn starts_with(body: &[u8], first: u8) -> bool {
    body.trim_ascii_start().first() == Some(&first)
        && serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok()
}

/// What an error of Jira's says, for a log.
pub fn summary(body: &[u8]) -> String {
    messages(body).join("; ").chars().take(500).collect()
}

/// The sentences of an error of Jira's, whichever of its forms it has.
pub fn messages(body: &[u8]) -> Vec<String> {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(fields) => fields.get("message")?.as_str().map(str::to_owned),
        _ => None,
    };
    let list = match &value {
        Value::Array(list) => list.clone(),
        Value::Object(fields) => match fields.get("errorMessages").or_else(|| fields.get("errors"))
        {
            Some(Value::Array(list)) => list.clone(),
            _ => vec![value.clone()],
        },
        _ => Vec::new(),
    };
    let found: Vec<String> = list.iter().filter_map(text).collect();
    if found.is_empty() {
        let told: String = String::from_utf8_lossy(body).chars().take(500).collect();
        return vec![if told.trim().is_empty() {
            "Jira gave no reason".to_owned()
        } else {
            told
        }];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaped(endpoint: Endpoint, status: u16, body: &'static str) -> String {
        let status = StatusCode::from_u16(status).expect("status");
        let body = for_gitlab(endpoint, status, Bytes::from_static(body.as_bytes()));
        String::from_utf8(body.to_vec()).expect("text")
    }

    #[test]
    fn a_success_is_an_object() {
        let builds = Endpoint::Submit(Family::Builds);
        assert_eq!(shaped(builds, 202, ""), "{}");
        assert_eq!(shaped(builds, 202, "[1]"), "{}");
        assert_eq!(shaped(builds, 202, "{broken"), "{}");
        assert_eq!(
            shaped(builds, 202, "{\"acceptedBuilds\":[]}"),
            "{\"acceptedBuilds\":[]}"
        );
        assert_eq!(shaped(Endpoint::User, 200, "[]"), "[]");
    }

    #[test]
    fn a_refusal_is_a_list_or_an_object_as_the_client_wants_it() {
        let builds = Endpoint::Submit(Family::Builds);
        let devinfo = Endpoint::Submit(Family::Devinfo);
        let listed = r#"[{"message":"too old"}]"#;
        let object = r#"{"errorMessages":["too old"]}"#;
        for status in [400, 413] {
            assert_eq!(shaped(builds, status, listed), listed);
            assert_eq!(shaped(builds, status, object), listed);
            assert_eq!(shaped(builds, status, r#"{"message":"too old"}"#), listed);
            assert_eq!(shaped(devinfo, status, object), object);
            assert_eq!(shaped(devinfo, status, listed), object);
        }
        assert_eq!(
            shaped(builds, 400, ""),
            r#"[{"message":"Jira gave no reason"}]"#
        );
        assert_eq!(shaped(builds, 400, "<html>"), r#"[{"message":"<html>"}]"#);
        assert_eq!(shaped(builds, 401, "<html>"), "<html>");
    }
}
