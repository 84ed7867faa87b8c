//! The cloud id of a site, which every site tells whoever asks (`/_edge/tenant_info`).
//!
//! The id says which site a call at Atlassian's gateway is about. An operator names the site by its address, so the
//! address is asked, without credentials and without following where it may point.

use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::Full;
use serde::Deserialize;

use super::forward::destination;
use crate::{
    client::{Client, SendError},
    domain::{CloudId, JiraBaseUrl, JiraSites},
    reject::{Reject, RejectKind},
};

const PATH: &str = "/_edge/tenant_info";

const ANSWER_MAX_BYTES: usize = 16 * 1024;

/// Why a site's id is not known.
#[derive(Debug, thiserror::Error)]
pub enum TenantFault {
    /// No answer.
    #[error("{site} does not answer: {cause}")]
    Silent {
        /// Which site.
        site: JiraBaseUrl,
        /// Why.
        cause: SendError,
    },
    /// Atlassian has no site of that name.
    #[error("there is no Jira site at {0}")]
    NoSite(JiraBaseUrl),
    /// It has another name now.
    #[error("{site} points to {location}, which is not followed")]
    Moved {
        /// Which site.
        site: JiraBaseUrl,
        /// Where it points.
        location: String,
    },
    /// Not now.
    #[error("{site} is not well: it answers {status}")]
    Unwell {
        /// Which site.
        site: JiraBaseUrl,
        /// With what.
        status: StatusCode,
    },
    /// Something else is there.
    #[error("what answers at {site} (with {status}) is no Jira Cloud site: it tells no cloud id")]
    Stranger {
        /// Which site.
        site: JiraBaseUrl,
        /// With what.
        status: StatusCode,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TenantInfo {
    cloud_id: CloudId,
}

/// Asks a site for its id.
pub async fn cloud_id(
    client: &Client,
    listed: &JiraSites,
    site: &JiraBaseUrl,
    patience: Duration,
) -> Result<CloudId, TenantFault> {
    let silent = |cause| TenantFault::Silent {
        site: site.clone(),
        cause,
    };
    let request = Request::get(format!("{site}{PATH}"))
        .header(header::ACCEPT, "application/json")
        .body(Full::default())
        .map_err(|error| silent(SendError::Broken(error.to_string())))?;
    let answer = client
        .send(
            destination(listed, site),
            request,
            patience,
            ANSWER_MAX_BYTES,
        )
        .await
        .map_err(silent)?;
    let (status, site) = (answer.status(), site.clone());
    match status.as_u16() {
        200 => serde_json::from_slice::<TenantInfo>(answer.body())
            .map(|info| info.cloud_id)
            .map_err(|_| TenantFault::Stranger { site, status }),
        404 => Err(TenantFault::NoSite(site)),
        300..=399 => {
            let location = answer.headers().get(header::LOCATION);
            let location = location.and_then(|location| location.to_str().ok());
            let location = location.unwrap_or("?").chars().take(200).collect();
            Err(TenantFault::Moved { site, location })
        }
        429 | 500..=599 => Err(TenantFault::Unwell { site, status }),
        _ => Err(TenantFault::Stranger { site, status }),
    }
}

impl From<TenantFault> for Reject {
    fn from(fault: TenantFault) -> Self {
        let (kind, code, hint) = match &fault {
            TenantFault::Silent { .. } => (
                RejectKind::BadGateway,
                "site_unreachable",
                "check the address, and whether the relay may call it",
            ),
            TenantFault::NoSite(_) => (
                RejectKind::Unprocessable,
                "site_unknown",
                "give the address that people see in their browser when they use Jira, like https://acme.atlassian.net",
            ),
            TenantFault::Moved { .. } => (
                RejectKind::Unprocessable,
                "site_moved",
                "give the address that it points to",
            ),
            TenantFault::Unwell { .. } => (
                RejectKind::BadGateway,
                "site_unwell",
                "try again; Atlassian's status page may know more",
            ),
            TenantFault::Stranger { .. } => (
                RejectKind::Unprocessable,
                "site_no_jira",
                "give the address of a Jira Cloud site, like https://acme.atlassian.net",
            ),
        };
        Self::new(kind, code, fault.to_string(), hint)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::{client::DialSettings, jwt::crypto};

    const SOON: Duration = Duration::from_secs(20);

    fn client() -> Client {
        crypto::install();
        Client::new(&DialSettings {
            roots: std::sync::Arc::new(rustls::RootCertStore::empty()),
            connect_timeout: SOON,
            allow_private: false,
        })
    }

    /// What a site with this answer is taken for.
    async fn told(answer: &str) -> Result<CloudId, TenantFault> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let answer = answer.to_owned();
        let site = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.expect("request");
            let _ = stream.write_all(answer.as_bytes()).await;
            request.truncate(length);
            String::from_utf8(request).expect("text")
        });
        let listed = JiraSites::new(std::slice::from_ref(&url)).expect("sites");
        let base_url = listed.parse(&url).expect("site");
        let told = cloud_id(&client(), &listed, &base_url, SOON).await;
        let request = site.await.expect("site").to_lowercase();
        assert!(
            request.starts_with("get /_edge/tenant_info http/1.1"),
            "{request}"
        );
        assert!(!request.contains("authorization"), "{request}");
        told
    }

    fn json(status: &str, body: &str) -> String {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
    }

    fn code(fault: TenantFault) -> &'static str {
        Reject::from(fault).code
    }

    #[tokio::test]
    async fn a_site_tells_its_id_or_what_it_is() {
        let id = "4c822e2f-510f-48b9-b8d2-8419d0932949";
        let body = format!(r#"{{"cloudId":"{id}","more":1}}"#);
        let found = told(&json("200 OK", &body)).await.expect("id");
        assert_eq!(found.as_str(), id);
        let large = format!(r#"{{"cloudId":"{id}","more":"{}"}}"#, "x".repeat(20_000));
        for (answer, expected) in [
            (json("404 Not Found", "{}"), "site_unknown"),
            (json("503 Service Unavailable", ""), "site_unwell"),
            (json("200 OK", "<html>"), "site_no_jira"),
            (
                json("200 OK", r#"{"cloudId":"../../evil"}"#),
                "site_no_jira",
            ),
            (json("403 Forbidden", "{}"), "site_no_jira"),
            (json("200 OK", &large), "site_unreachable"),
            ("nonsense".to_owned(), "site_unreachable"),
        ] {
            let fault = told(&answer).await.expect_err(expected);
            assert_eq!(code(fault), expected, "{answer:.60}");
        }
        let moved = "HTTP/1.1 301 Moved\r\nlocation: https://new.atlassian.net/\r\ncontent-length: 0\r\n\r\n";
        let fault = told(moved).await.expect_err("moved");
        assert!(
            fault.to_string().contains("https://new.atlassian.net/"),
            "{fault}"
        );
        assert_eq!(code(fault), "site_moved");
    }

    #[tokio::test]
    async fn a_site_that_nobody_listed_must_be_public() {
        let nowhere = JiraSites::default();
        let listed = JiraSites::new(&["http://127.0.0.1:1".to_owned()]).expect("sites");
        let site = listed.parse("http://127.0.0.1:1").expect("site");
        let fault = cloud_id(&client(), &nowhere, &site, SOON).await;
        let fault = fault.expect_err("private").to_string();
        assert!(fault.contains("no public address"), "{fault}");
    }
}
