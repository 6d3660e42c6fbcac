//! The tables `[homeservers.NAME.mas]`.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::super::mas_keys::{Localpart, MasHeadKeys, MasKeys};
use super::super::settings::Mas;
use super::Parser;
use super::secrets::CLIENT_SECRET;
use crate::mas::Ulid;
use crate::values::fingerprint::Fingerprint;
use crate::values::schema::{Table, wrong_type};

const UNENCRYPTED: &str = "the client secret and tokens are sent unencrypted over the network: use https, or MAS's listener on this machine";

impl Parser<'_> {
    /// The MAS of a homeserver, whose table this is; `None` after an error.
    pub(super) fn mas(&mut self, homeserver: &str, value: &Spanned<DeValue<'_>>) -> Option<Mas> {
        let Some(entries) = value.get_ref().as_table() else {
            self.errors.push(wrong_type(value, &format!("a table [homeservers.{homeserver}.mas]")));
            return None;
        };
        let table = Table::new(entries, value.span());
        table.reject_unknown(&[MasHeadKeys::KEYS, MasKeys::KEYS], &mut self.errors);
        let head = MasHeadKeys::parse(&table, &mut self.errors);
        let keys = MasKeys::parse(&table, &mut self.errors);
        let secret =
            self.secret(&CLIENT_SECRET, &head.client_secret, &head.client_secret_file, &table);
        let (secret_file, secret) = secret?;
        let url = head.url.value?.0;
        let admin_url = head.admin_url.value?.map_or_else(|| url.clone(), |url| url.0);
        self.warn_if_unencrypted(head.url.span, &url, UNENCRYPTED);
        if head.admin_url.is_set {
            self.warn_if_unencrypted(head.admin_url.span, &admin_url, UNENCRYPTED);
        }
        Some(Mas {
            url,
            admin_url,
            client_id: keys.client_id.value?,
            account: keys.account.value?.0,
            secret_file,
            secret,
            definition: Fingerprint::of(&table.definition()),
        })
    }

    /// Checks the keys of `homeserver_defaults.mas`, none of which has to be there.
    pub(super) fn check_mas_defaults(&mut self, value: &Spanned<DeValue<'_>>) {
        let Some(entries) = value.get_ref().as_table() else {
            self.errors.push(wrong_type(value, "a table [homeserver_defaults.mas]"));
            return;
        };
        for key in entries.keys() {
            if MasHeadKeys::KEYS.iter().any(|head| head.name == key.get_ref().as_ref()) {
                let text = format!(
                    "`{}` cannot have a default: set it in each [homeservers.NAME.mas]",
                    key.get_ref()
                );
                self.error(key.span(), text);
            }
        }
        let table = Table::new(entries, value.span());
        table.reject_unknown(&[MasHeadKeys::KEYS, MasKeys::KEYS], &mut self.errors);
        if entries.contains_key("client_id") {
            table.entry::<Ulid>("client_id", None, None, &mut self.errors);
        }
        if entries.contains_key("account") {
            table.entry::<Localpart>("account", None, None, &mut self.errors);
        }
    }
}

/// Removes the defaults for MAS from the keys of a homeserver that has none.
pub(super) fn without_mas_of_others<'i>(mut merged: DeTable<'i>, own: &DeTable<'i>) -> DeTable<'i> {
    if !own.contains_key("mas") {
        merged.remove("mas");
    }
    merged
}
