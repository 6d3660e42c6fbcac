//! What to put into the configurations of MAS and of microglia, so that the daemon issues its own token.

use std::path::Path;

use reqwest::Url;
use ulid::Ulid;

use crate::values::clock::Timestamp;
use crate::values::random::random_bytes;

/// Returns the settings for both, with a new client id; `mas_url` is `None` where MAS did not tell its own.
pub(super) fn mas_settings(homeserver: &str, mas_url: Option<&Url>, now: Timestamp) -> String {
    let client_id = new_client_id(now);
    let settings_of_mas = settings_of_mas(&client_id.to_string());
    let url = mas_url.map_or("https://account.example.com", |url| url.as_str());
    format!(
        r#"1. Add this to the configuration of MAS, keep the listeners that it has, and restart it:

{settings_of_mas}
2. Create the secret, for example with `openssl rand -hex 32`: in the file above, readable by MAS, and in a file
   `mas-client-secret` beside the configuration of microglia, readable by microglia alone (mode 0600).

3. Create the account, unless it exists: mas-cli manage register-user microglia

4. In the configuration of microglia, remove `access_token_file` and `access_token` of the homeserver, and add:

[homeservers.{homeserver}.mas]
url = "{url}"
admin_url = "http://127.0.0.1:8081"
client_id = "{client_id}"
client_secret_file = "mas-client-secret"
account = "microglia"

5. Run `microglia check --online`.
"#
    )
}

/// What the configuration of MAS must have for a client.
pub(super) fn settings_of_mas(client_id: &str) -> String {
    format!(
        r"clients:
  - client_id: {client_id}
    client_auth_method: client_secret_basic
    client_secret_file: /etc/mas/microglia-client-secret
policy:
  data:
    admin_clients:
      - {client_id}
http:
  listeners:
    - name: microglia
      resources:
        - name: adminapi
        - name: oauth
        - name: discovery
        - name: health
      binds:
        - host: 127.0.0.1
          port: 8081
"
    )
}

/// What is left to do once `init` has written the configuration of microglia and `secret_file`.
pub(super) fn mas_steps(client_id: &str, secret_file: &Path, check: &str) -> String {
    format!(
        r"
Next:
1. Add this to the configuration of MAS, keep the listeners that it has, and restart it:

{}
2. Copy {} to the file above, readable by MAS.

3. Create the account, unless it exists: mas-cli manage register-user microglia

4. Check everything: {check}
",
        settings_of_mas(client_id),
        secret_file.display()
    )
}

/// MAS accepts nothing but a ULID as the id of a client.
pub(super) fn new_client_id(now: Timestamp) -> Ulid {
    let milliseconds = u64::try_from(now.timestamp_millis()).unwrap_or_default();
    Ulid::from_parts(milliseconds, u128::from_be_bytes(random_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_get_the_same_new_client_id() {
        let now = "2026-11-30T12:00:00Z".parse().unwrap();
        let ids = || {
            let settings = mas_settings("main", None, now);
            let words = settings.split(|c: char| !c.is_ascii_alphanumeric());
            words
                .filter(|word| Ulid::from_string(word).is_ok())
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let (one, other) = (ids(), ids());
        assert_eq!(one.len(), 3, "{one:?}");
        assert!(one.iter().all(|id| *id == one[0]), "{one:?}");
        assert!(!other.contains(&one[0]));
    }
}
