//! The URL of a PostgreSQL database: checked completely before anything connects, and never printed with its password.

use std::fmt;
use std::sync::Arc;

use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};

/// How PostgreSQL's views name the connections of this program.
pub(super) const APPLICATION: &str = "microglia";
const COPY: &str = "microglia history copy";

/// A PostgreSQL database; printed without its password.
#[derive(Clone)]
pub struct DatabaseUrl {
    /// In the form in which sqlx reads it.
    url: Arc<SecretString>,
    shown: Arc<str>,
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.shown)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.shown)
    }
}

impl PartialEq for DatabaseUrl {
    fn eq(&self, other: &Self) -> bool {
        self.url.expose_secret() == other.url.expose_secret()
    }
}

impl Eq for DatabaseUrl {}

const EXAMPLE: &str = "\"postgresql://microglia:PASSWORD@db.example.com/microglia?sslmode=verify-full\" or \"postgresql://%2Frun%2Fpostgresql/microglia\"";
const DEFAULT_PORT: u16 = 5432;
const SSL_MODES: &[&str] = &["disable", "prefer", "require", "verify-ca", "verify-full"];
/// Beside those of the URL's other parts. The rest of libpq's would be ignored, which is worse than an error.
const PARAMETERS: &str =
    "sslmode, sslrootcert, sslcert, sslkey, host, port, user, password, dbname, options";

/// The parts of the URL. No error of reading them repeats what was written: it may hold a password.
#[derive(Default)]
struct Parts {
    host: Option<String>,
    port: Option<u16>,
    user: Option<String>,
    password: Option<SecretString>,
    database: Option<String>,
    ssl_mode: Option<&'static str>,
    root_cert: Option<String>,
    /// Taken over as they are.
    others: Vec<(&'static str, String)>,
}

impl DatabaseUrl {
    /// Reads a URL; an error never repeats it.
    pub fn parse(text: &SecretString) -> Result<Self, String> {
        let url = parse_url(text.expose_secret())?;
        let mut parts = Parts::of(&url)?;
        for (key, value) in url.query_pairs() {
            parts.set(&key, &value)?;
        }
        parts.check()?;
        Ok(parts.build())
    }

    pub(super) fn for_copy(&self) -> Self {
        let name = |name| format!("application_name={}", percent_encoded(name));
        let url = self.expose().replace(&name(APPLICATION), &name(COPY));
        Self { url: Arc::new(url.into()), shown: Arc::clone(&self.shown) }
    }

    pub(super) fn expose(&self) -> &str {
        self.url.expose_secret()
    }
}

fn parse_url(text: &str) -> Result<Url, String> {
    if !["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme)) {
        return Err(format!(
            "the URL must begin with postgres:// or postgresql://, such as {EXAMPLE}"
        ));
    }
    let parsed = match text.parse() {
        // A user before an empty host, which a parameter names: libpq accepts it.
        Err(_) if text.contains("@/") => text.replacen("@/", "@localhost/", 1).parse::<Url>(),
        parsed => parsed,
    };
    parsed.map_err(|error| {
        format!("invalid URL of a database ({error}): percent-encode special characters of the password; write it as {EXAMPLE}")
    })
}

fn decoded(text: &str, what: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                let code = digit().zip(digit()).and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
                code.ok_or_else(|| {
                    format!("the {what} in the URL of the database has a % that encodes nothing: write %25")
                })?
            }
            byte => byte,
        });
    }
    let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    text.ok_or_else(|| format!("the {what} in the URL of the database is not text"))
}

impl Parts {
    fn of(url: &Url) -> Result<Self, String> {
        let part = |text: &str, what| match text {
            "" => Ok(None),
            text => decoded(text, what).map(Some),
        };
        let host = url.host_str().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Ok(Self {
            host: part(host, "host")?,
            port: url.port(),
            user: part(url.username(), "user")?,
            password: url
                .password()
                .map(|text| decoded(text, "password"))
                .transpose()?
                .map(Into::into),
            database: part(url.path().trim_start_matches('/'), "name of the database")?,
            ..Self::default()
        })
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let value = value.to_owned();
        match key {
            "host" => self.host = Some(value),
            "port" => {
                let port =
                    value.parse().map_err(|_| "port must be a number up to 65535".to_owned())?;
                self.port = Some(port);
            }
            "user" => self.user = Some(value),
            "password" => self.password = Some(value.into()),
            "dbname" => self.database = Some(value),
            "sslmode" => {
                let known = SSL_MODES.iter().find(|mode| **mode == value);
                let unknown = || format!("sslmode must be one of {}", SSL_MODES.join(", "));
                self.ssl_mode = Some(known.ok_or_else(unknown)?);
            }
            "sslrootcert" => self.root_cert = Some(value),
            "sslcert" => self.others.push(("sslcert", value)),
            "sslkey" => self.others.push(("sslkey", value)),
            "options" => self.others.push(("options", value)),
            _ => {
                return Err(format!(
                    "unknown parameter in the URL of the database: use {PARAMETERS}"
                ));
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), String> {
        if self.port == Some(0) {
            return Err("the port of the database must not be 0".to_owned());
        }
        if self.database.as_ref().is_none_or(String::is_empty) {
            return Err(format!("name the database in the URL, such as {EXAMPLE}"));
        }
        if self.host.as_ref().is_none_or(String::is_empty) {
            return Err(format!(
                "name the host or the directory of the Unix socket in the URL, such as {EXAMPLE}"
            ));
        }
        let has = |key| self.others.iter().any(|(other, _)| *other == key);
        if has("sslcert") != has("sslkey") {
            return Err("sslcert and sslkey belong together: give both or none".to_owned());
        }
        self.ssl_mode = match (self.ssl_mode, &self.root_cert) {
            // As libpq does: nobody names a certificate in order not to have it checked.
            (Some("require"), Some(_)) => Some("verify-ca"),
            (None | Some("disable" | "prefer"), Some(_)) => {
                return Err("sslrootcert needs sslmode=verify-full or verify-ca".to_owned());
            }
            (None, None) => Some("prefer"),
            (mode, _) => mode,
        };
        Ok(())
    }

    /// Names every value, so that no variable of the environment stands in for it.
    fn build(self) -> DatabaseUrl {
        let (host, database) = (self.host.unwrap_or_default(), self.database.unwrap_or_default());
        let port = self.port.unwrap_or(DEFAULT_PORT);
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let place = match host.starts_with('/') {
            true => host.clone(),
            false if host.contains(':') => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let shown = format!("postgresql://{user}{place}/{database}");
        let port = port.to_string();
        let mut pairs = vec![
            ("host", host.as_str()),
            ("port", &port),
            ("dbname", &database),
            ("sslmode", self.ssl_mode.unwrap_or("prefer")),
            ("application_name", APPLICATION),
            // PgBouncer may hand each transaction to another connection, which knows no statement prepared before.
            ("statement-cache-capacity", "0"),
        ];
        pairs.extend(self.user.as_deref().map(|user| ("user", user)));
        pairs.extend(self.password.as_ref().map(|password| ("password", password.expose_secret())));
        pairs.extend(self.root_cert.as_deref().map(|file| ("sslrootcert", file)));
        pairs.extend(self.others.iter().map(|(key, value)| (*key, value.as_str())));
        let query: Vec<String> =
            pairs.iter().map(|(key, value)| format!("{key}={}", percent_encoded(value))).collect();
        let url = format!("postgres://localhost/?{}", query.join("&"));
        DatabaseUrl { url: Arc::new(url.into()), shown: shown.into() }
    }
}

/// Encodes every byte that is not a letter or digit.
pub(super) fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte.is_ascii_alphanumeric() {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}
