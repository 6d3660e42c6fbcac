//! The keys of `[homeservers.NAME.mas]`, and their types.

use std::path::PathBuf;

use reqwest::Url;
use secrecy::SecretString;

use super::keys::base_url;
use crate::mas::Ulid;
use crate::values::schema::{Key, schema, text_values};

schema! {
    pub entries MasHeadKeys {
        /// The public URL of the Matrix Authentication Service.
        pub url: MasUrl,
        /// Where its Admin API listens; default: `url`. The listener needs the resource `adminapi`.
        pub admin_url: Option<MasUrl>,
        /// The secret of the client; prefer `client_secret_file`.
        pub client_secret: Option<SecretString>,
        /// A file with the secret of the client; a new secret is used from the next request for a token on.
        pub client_secret_file: Option<PathBuf>,
    }
}

schema! {
    pub entries MasKeys {
        /// The id of the client under `clients` in MAS's configuration, with `client_auth_method: client_secret_basic`; it must be in `policy.data.admin_clients`, too.
        pub client_id: Ulid,
        /// The localpart of the account as which microglia acts on Synapse.
        pub account: Localpart,
    }
}

/// The table itself, where it stands among the keys of a homeserver.
pub const MAS_TABLE: &[Key] = &[Key {
    name: "mas",
    value: || "a table".to_owned(),
    default: None,
    required: false,
    range: None,
    quantity: false,
    about: "The Matrix Authentication Service that manages the accounts.",
}];

/// The base URL of a listener of MAS, without query and fragment.
#[derive(Debug, Clone)]
pub struct MasUrl(pub Url);

impl std::str::FromStr for MasUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let example = "use the base URL of a listener, such as \"http://127.0.0.1:8081\"";
        let endpoints = ["/api/admin", "/oauth2", "/.well-known"];
        base_url(text, "MAS", example, &endpoints).map(Self)
    }
}

/// The part of a Matrix id before the colon, without `@`.
#[derive(Debug, Clone)]
pub struct Localpart(pub String);

impl std::str::FromStr for Localpart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_allowed = |c: char| c.is_ascii_graphic() && !"@:".contains(c);
        if text.is_empty() || text.len() > 255 || !text.chars().all(is_allowed) {
            return Err(format!(
                "invalid localpart {text:.300?}: expected the part of a Matrix id between `@` and `:`, such as \"microglia\""
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

text_values! {
    MasUrl: "a URL such as \"http://127.0.0.1:8081\"", |url| url.0.to_string();
    Ulid: "a ULID such as \"01J44RKQYM4G3TNVANTMTDYTX6\"", |ulid| ulid.to_string();
    Localpart: "a localpart such as \"microglia\"";
}
