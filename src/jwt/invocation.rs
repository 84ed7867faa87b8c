//! The invocation token of Atlassian Forge ("FIT"): RS256 by Forge, one with each call to the remote of a Forge app.
//!
//! Rules: Atlassian's "Forge Remote essentials", sections "The Forge Invocation Token (FIT)" and "Verifying remote
//! requests". What that table calls required is required here, with `jti`, which its example has. Relied on beyond it,
//! as seen in tokens that the platform sent: a `kid` may hold slashes (`forge/invocation-token/<name>`), a token lives
//! 25 s, an environment's id names app and environment.
//!
//! The token binds tenant, user and module, but not method, path or body (there is no `qsh`). That leaves the replay:
//! a token is good for one request. And it leaves the path to whoever is at the page: `invokeRemote` and `requestRemote`
//! call any address of the remote, so an address that only Forge itself should call has to ask
//! [`VerifiedInvocation::is_pages`].
//!
//! What is not in every token: calls of a page have a `principal` and a `context` with `siteUrl`; triggers (events,
//! scheduled ones) have no principal, and of the context at most the cloud id, which is why the site's address is
//! optional and the cloud id is taken from `app.apiBaseUrl`, which all have.

use jiff::Timestamp;
use jsonwebtoken::Algorithm;
use serde::Deserialize;

use super::{
    UnverifiedToken, VerifyError, check_signature,
    jwks::KeySet,
    spent::{SpentTokens, TokenId},
    token::{Audience, LEEWAY_SECS},
};
use crate::domain::{
    ApiBaseUrl, CloudId, ForgeAppId, ForgeEnvironmentId, ForgeEnvironmentType, ForgeInstallationId,
    JiraApiUrl, JiraBaseUrl, JiraSites, KeyId,
    forge::{PAGE_ENDPOINT, PAGE_MODULE},
};

/// The issuer of every invocation token.
pub const ISSUER: &str = "forge/invocation-token";

/// Module keys, versions and account ids are short words; this is far above any.
const WORD_MAX_BYTES: usize = 255;

/// Verifies the invocation tokens of one app.
pub struct InvocationVerifier {
    app_id: ForgeAppId,
    environments: Vec<ForgeEnvironmentType>,
    api_url: JiraApiUrl,
    sites: JiraSites,
    keys: KeySet,
    spent: SpentTokens,
}

/// What a verified invocation token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedInvocation {
    /// Whose call it is: what to key everything by.
    pub installation_id: ForgeInstallationId,
    /// Which environment of the app is installed there.
    pub environment_id: ForgeEnvironmentId,
    /// What that environment is for; one of those that the operator serves.
    pub environment: ForgeEnvironmentType,
    /// The site.
    pub cloud_id: CloudId,
    /// Where its REST API is: below `jira.api_url`.
    pub api_base_url: ApiBaseUrl,
    /// The site's own address, where the token tells it and it is one that we serve.
    pub site: Option<JiraBaseUrl>,
    /// The version of the app there.
    pub app_version: String,
    /// The Jira user in front of the page; nobody for triggers.
    pub account_id: Option<String>,
    /// What made the call.
    pub module: Module,
    /// When Forge signed it.
    pub issued_at: Timestamp,
    token: TokenId,
}

/// A module of the app's manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its type: for calls of a page the page's own or `core:endpoint`, for others `core:endpoint`. Some triggers have
    /// been seen to say `core:trigger`, so nothing can be asked of them but not to be the page's.
    pub kind: String,
    /// Its key in the manifest.
    pub key: String,
}

/// The claims beside those that all tokens have.
#[derive(Deserialize)]
struct Claims {
    jti: Option<String>,
    app: Option<App>,
    context: Option<Context>,
    principal: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct App {
    id: Option<String>,
    installation_id: Option<String>,
    installation: Option<Installation>,
    api_base_url: Option<String>,
    app_version: Option<String>,
    environment: Option<Environment>,
    module: Option<UnverifiedModule>,
}

#[derive(Deserialize)]
struct Installation {
    id: Option<String>,
}

#[derive(Deserialize)]
struct Environment {
    r#type: Option<String>,
    id: Option<String>,
}

#[derive(Deserialize)]
struct UnverifiedModule {
    r#type: Option<String>,
    key: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Context {
    cloud_id: Option<String>,
    site_url: Option<String>,
}

impl VerifiedInvocation {
    /// Whether somebody at the app's page made the call, who then chose its address and all its headers but the token.
    /// Only calls of a page have a `principal`, by the documentation; whoever has none there is nobody, and still there.
    pub fn is_pages(&self) -> bool {
        self.account_id.is_some()
            || self.module.kind == PAGE_MODULE
            || self.module.key == PAGE_ENDPOINT
    }
}

impl InvocationVerifier {
    /// `environments` are those of the app whose calls are taken, `api_url` the only gateway that a token may name,
    /// `sites` the addresses that a site may have.
    pub fn new(
        app_id: ForgeAppId,
        environments: Vec<ForgeEnvironmentType>,
        api_url: JiraApiUrl,
        sites: JiraSites,
        keys: KeySet,
    ) -> Self {
        Self {
            app_id,
            environments,
            api_url,
            sites,
            keys,
            spent: SpentTokens::default(),
        }
    }

    /// Verifies a token, and takes it: the same one is refused from now on ([`VerifyError::Replayed`]).
    ///
    /// Everything that can be judged without the key is judged first, so that a stranger can hardly make us fetch keys.
    pub async fn verify(
        &self,
        token: &UnverifiedToken,
        now: Timestamp,
    ) -> Result<VerifiedInvocation, VerifyError> {
        if token.unverified_header.alg != "RS256" {
            return Err(VerifyError::Algorithm { expected: "RS256" });
        }
        let unverified_kid = token.unverified_header.kid.as_deref();
        let unverified_kid = unverified_kid.ok_or(VerifyError::ClaimMissing("kid"))?;
        let kid = KeyId::parse(unverified_kid).map_err(|_| VerifyError::KeyIdMalformed)?;
        let unproven = self.judge(token, now)?;
        let key = self.keys.find(&kid, now).await?;
        check_signature(token, &key, Algorithm::RS256)?;
        let proven = unproven;
        let expires_at = token.unverified_claims.exp.unwrap_or_default();
        self.spent.spend(
            &proven.installation_id,
            proven.token,
            expires_at.saturating_add(LEEWAY_SECS),
            now.as_second(),
        )?;
        Ok(proven)
    }

    /// Lets a token count once more, because its request could not be done and somebody may try it again with the same
    /// one. Forge tries events up to four times, and does not say whether each attempt has a token of its own.
    pub fn give_back(&self, invocation: &VerifiedInvocation) {
        self.spent
            .give_back(&invocation.installation_id, invocation.token);
    }

    /// Forge's keys.
    pub fn keys(&self) -> &KeySet {
        &self.keys
    }

    /// What a token says, if it says it to us and now. Nothing of it is proven yet.
    fn judge(
        &self,
        token: &UnverifiedToken,
        now: Timestamp,
    ) -> Result<VerifiedInvocation, VerifyError> {
        let claims = &token.unverified_claims;
        let issuer = claims.iss.as_deref();
        if issuer.ok_or(VerifyError::ClaimMissing("iss"))? != ISSUER {
            return Err(VerifyError::Issuer { expected: ISSUER });
        }
        self.check_audience(claims.aud.as_ref())?;
        claims.nbf.ok_or(VerifyError::ClaimMissing("nbf"))?;
        let issued_at = claims.check_times(now)?;

        let claims: Claims = token.more_claims()?;
        let app = claims.app.ok_or(VerifyError::ClaimMissing("app"))?;
        if app.id.as_deref() != Some(self.app_id.as_str()) {
            return Err(self.for_somebody_else(app.id.as_deref().unwrap_or_default()));
        }
        let (environment, environment_id) = self.environment(app.environment)?;
        let (cloud_id, api_base_url) =
            self.address(app.api_base_url.as_deref(), claims.context.as_ref())?;
        // What can't be the address of a site is none: of all that is told, this alone nothing depends on.
        let site = claims.context.and_then(|context| context.site_url);
        let site = site.and_then(|url| self.sites.parse(&url).ok());
        let module = app.module.ok_or(VerifyError::ClaimMissing("app.module"))?;
        let jti = claims.jti.filter(|jti| !jti.is_empty());
        Ok(VerifiedInvocation {
            installation_id: installation_id(app.installation, app.installation_id)?,
            environment_id,
            environment,
            cloud_id,
            api_base_url,
            site,
            app_version: word("app.appVersion", app.app_version)?,
            account_id: claims
                .principal
                .map(|principal| word("principal", Some(principal)))
                .transpose()?,
            module: Module {
                kind: word("app.module.type", module.r#type)?,
                key: word("app.module.key", module.key)?,
            },
            issued_at,
            token: TokenId::new(&jti.ok_or(VerifyError::ClaimMissing("jti"))?),
        })
    }

    /// The app's id and nothing else, alone: Forge has no other audience, and we have one app.
    fn check_audience(&self, audience: Option<&Audience>) -> Result<(), VerifyError> {
        let audience = audience.ok_or(VerifyError::ClaimMissing("aud"))?;
        match audience {
            Audience::One(one) if one == self.app_id.as_str() => Ok(()),
            Audience::Several(several) if several.as_slice() == [self.app_id.as_str()] => Ok(()),
            Audience::One(one) => Err(self.for_somebody_else(one)),
            Audience::Several(several) => Err(self.for_somebody_else(&several.join(", "))),
        }
    }

    fn for_somebody_else(&self, unverified: &str) -> VerifyError {
        VerifyError::Audience {
            expected: self.app_id.to_string(),
            unverified: unverified.chars().take(200).collect(),
        }
    }

    fn environment(
        &self,
        environment: Option<Environment>,
    ) -> Result<(ForgeEnvironmentType, ForgeEnvironmentId), VerifyError> {
        let environment = environment.ok_or(VerifyError::ClaimMissing("app.environment"))?;
        let kind = environment.r#type;
        let kind = kind.ok_or(VerifyError::ClaimMissing("app.environment.type"))?;
        let kind = ForgeEnvironmentType::parse(&kind)
            .map_err(|_| VerifyError::Malformed("its app.environment.type"))?;
        if !self.environments.contains(&kind) {
            return Err(VerifyError::Environment(kind));
        }
        let id = environment.id;
        let id = id.ok_or(VerifyError::ClaimMissing("app.environment.id"))?;
        let id = ForgeEnvironmentId::parse(&id)
            .map_err(|_| VerifyError::Malformed("its app.environment.id"))?;
        Ok((kind, id))
    }

    /// The site, and where we call it: an address that gets our tokens, so it is the configured gateway's or none.
    fn address(
        &self,
        api_base_url: Option<&str>,
        context: Option<&Context>,
    ) -> Result<(CloudId, ApiBaseUrl), VerifyError> {
        let api_base_url = api_base_url.ok_or(VerifyError::ClaimMissing("app.apiBaseUrl"))?;
        let cloud_id = self.api_url.cloud_id_of(api_base_url);
        let cloud_id = cloud_id.ok_or_else(|| VerifyError::ApiAddress {
            expected: self.api_url.to_string(),
            unverified: api_base_url.chars().take(200).collect(),
        })?;
        let in_context = context.and_then(|context| context.cloud_id.as_deref());
        if in_context.is_some_and(|id| id != cloud_id.as_str()) {
            return Err(VerifyError::Malformed("it names two sites"));
        }
        let api_base_url = self.api_url.of(&cloud_id);
        Ok((cloud_id, api_base_url))
    }
}

/// The documentation calls both places required, and says the same of both.
fn installation_id(
    installation: Option<Installation>,
    id: Option<String>,
) -> Result<ForgeInstallationId, VerifyError> {
    let nested = installation.and_then(|installation| installation.id);
    let id = match (nested, id) {
        (Some(nested), Some(id)) if nested != id => {
            return Err(VerifyError::Malformed("it names two installations"));
        }
        (Some(id), _) | (None, Some(id)) => id,
        (None, None) => return Err(VerifyError::ClaimMissing("app.installationId")),
    };
    ForgeInstallationId::parse(&id).map_err(|_| VerifyError::Malformed("its app.installationId"))
}

/// A claim that gets into logs and records.
fn word(claim: &'static str, text: Option<String>) -> Result<String, VerifyError> {
    let text = text.ok_or(VerifyError::ClaimMissing(claim))?;
    let fits = (1..=WORD_MAX_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then_some(text).ok_or(VerifyError::Malformed(claim))
}
