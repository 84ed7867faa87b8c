//! GitLab's table of installations, straight from its database by `psql`, which whoever runs one has. The relay needs no
//! client of its own for something that is done once.

use std::{
    io,
    process::{Command, Stdio},
};

use anyhow::Context as _;
use url::Url;
use zeroize::Zeroizing;

/// As GitLab's `jira_connect_installations` is exported by hand, too.
const COPY: &str = r"\copy jira_connect_installations to stdout csv header";

/// What may stand behind the `?` of a connection string, and the variable that `psql` takes it from
/// (<https://www.postgresql.org/docs/current/libpq-envars.html>).
const PARAMETERS: [(&str, &str); 9] = [
    ("host", "PGHOST"),
    ("port", "PGPORT"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("dbname", "PGDATABASE"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("options", "PGOPTIONS"),
];

/// The export as CSV. The connection string goes to `psql` by the environment: arguments can be seen by every user.
pub(super) fn export(connection: &str) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let variables = variables(connection)?;
    let mut psql = Command::new("psql");
    // Nothing but the connection string says where to.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("PG")) {
            psql.env_remove(name);
        }
    }
    let output = psql
        .args(["--no-psqlrc", "--no-password", "--quiet"])
        .args(["--set", "ON_ERROR_STOP=1", "--command", COPY])
        .envs(variables)
        .stdin(Stdio::null())
        .output();
    let output = output.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow::anyhow!(
            "there is no psql here: install postgresql-client, or run this where it is and hand the export over in a file"
        ),
        _ => anyhow::Error::new(error).context("psql can't be run"),
    })?;
    anyhow::ensure!(
        output.status.success(),
        "the export from GitLab's database failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(Zeroizing::new(output.stdout))
}

/// `postgres://user:password@host:port/database?...`, taken apart.
fn variables(connection: &str) -> anyhow::Result<Vec<(&'static str, String)>> {
    // The text may hold a password, so no error quotes it.
    let form = "a connection string looks like postgresql://user:password@host:5432/gitlabhq_production?sslmode=verify-full";
    let url = Url::parse(connection)
        .ok()
        .filter(|url| matches!(url.scheme(), "postgres" | "postgresql"))
        .context(form)?;
    let decoded = |text: &str| {
        let text = percent_encoding::percent_decode_str(text).decode_utf8();
        text.map(std::borrow::Cow::into_owned).context(form)
    };
    let mut variables = vec![("PGAPPNAME", "jira-connect-proxy".to_owned())];
    let mut set = |name, value: Option<&str>| -> anyhow::Result<()> {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            variables.push((name, decoded(value)?));
        }
        Ok(())
    };
    set(
        "PGHOST",
        url.host_str().map(|host| host.trim_matches(['[', ']'])),
    )?;
    set("PGPORT", url.port().map(|port| port.to_string()).as_deref())?;
    set("PGUSER", Some(url.username()))?;
    set("PGPASSWORD", url.password())?;
    set("PGDATABASE", Some(url.path().trim_start_matches('/')))?;
    for (name, value) in url.query_pairs() {
        let known = PARAMETERS.iter().find(|(known, _)| *known == name);
        let (_, variable) = known.with_context(|| {
            format!("the connection string has a parameter {name}, which is not known here")
        })?;
        variables.push((variable, value.into_owned()));
    }
    // A later one counts, as it does for the program that gets them.
    let last = |wanted: &str| {
        let found = variables.iter().rev().find(|(name, _)| *name == wanted);
        found.map(|(_, value)| value.as_str())
    };
    let is_local = last("PGHOST").is_none_or(|host| {
        host.starts_with('/') || matches!(host, "localhost" | "127.0.0.1" | "::1")
    });
    let has_timeout = last("PGCONNECT_TIMEOUT").is_some();
    match last("PGSSLMODE") {
        _ if is_local => {}
        Some("require" | "verify-ca" | "verify-full") => {}
        // The others fall back to plain text, and the export holds all that the key opens.
        Some(mode) => anyhow::bail!(
            "sslmode={mode} may send the export in clear: use require, verify-ca or verify-full"
        ),
        None => variables.push(("PGSSLMODE", "require".to_owned())),
    }
    if !has_timeout {
        variables.push(("PGCONNECT_TIMEOUT", "10".to_owned()));
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(connection: &str) -> String {
        let variables = variables(connection).expect("good");
        // Without the name of the program and the time that it takes.
        let words = variables
            .iter()
            .filter(|(name, _)| !matches!(*name, "PGAPPNAME" | "PGCONNECT_TIMEOUT"));
        let words: Vec<_> = words
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        words.join(" ")
    }

    #[test]
    fn connection_strings_are_taken_apart() {
        assert_eq!(
            read("postgres://git:p%40ss@db.example.com:5433/gitlabhq_production"),
            "PGHOST=db.example.com PGPORT=5433 PGUSER=git PGPASSWORD=p@ss PGDATABASE=gitlabhq_production PGSSLMODE=require"
        );
        assert_eq!(
            read("postgresql://git@[2001:db8::1]/gitlab?sslmode=verify-full"),
            "PGHOST=2001:db8::1 PGUSER=git PGDATABASE=gitlab PGSSLMODE=verify-full"
        );
        assert_eq!(
            read("postgresql:///gitlab?host=/var/opt/gitlab/postgresql&user=gitlab"),
            "PGDATABASE=gitlab PGHOST=/var/opt/gitlab/postgresql PGUSER=gitlab"
        );
    }

    #[test]
    fn what_is_no_connection_string_is_not_quoted() {
        for odd in [
            "mysql://git:secret@db/x",
            "git:secret@db",
            "postgres://git:secret@db/x?target=secret",
            "postgres://git:secret@db/x?sslmode=prefer",
            "postgres://git:secret@localhost/x?host=db.example.com&sslmode=disable",
        ] {
            let error = variables(odd).expect_err(odd);
            assert!(!format!("{error:#}").contains("secret@"), "{error:#}");
        }
    }
}
