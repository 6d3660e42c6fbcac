//! What `check --online` asks where MAS manages the accounts.

use super::check::Results;
use super::failure::Failure;
use super::mas_settings::settings_of_mas;
use crate::config::Homeserver;
use crate::http::{Cause, Error, NoToken};
use crate::mas;
use crate::synapse::{Identity, Reader, Version, Whoami};

/// Personal sessions are new in it.
const OLDEST_MAS: Version = Version(1, 5);
/// Delegating to MAS is stable from it on.
const STABLE_SYNAPSE: Version = Version(1, 136);

impl Results<'_> {
    /// Checks the MAS of a homeserver; returns whether a token can be expected from it.
    pub(super) async fn check_mas(
        &mut self,
        homeserver: &Homeserver,
        reader: &Reader,
    ) -> Result<bool, Failure> {
        let (Some(settings), Some(mas)) = (&homeserver.mas, reader.mas()) else {
            return Ok(false);
        };
        match reader.reaches_mas().await {
            Ok(Some(true)) => self.yes("Synapse reaches MAS", "yes, or it did earlier")?,
            Ok(Some(false)) => self.no(
                "Synapse reaches MAS",
                "not since it was started: check that MAS is running, and `endpoint` of matrix_authentication_service in Synapse's configuration",
            )?,
            Ok(None) => {
                self.no(
                    "Synapse delegates to MAS",
                    &format!("it manages the accounts itself: remove [homeservers.{}.mas] and set `access_token_file`, or configure matrix_authentication_service in Synapse", homeserver.name),
                )?;
                return Ok(false);
            }
            Err(error) => self.unknown("Synapse reaches MAS", &error.to_string())?,
        }
        if let Err(error) = mas.site_config().await {
            let (question, wrong) = question(&error);
            match wrong {
                true => self.no(question, &error.to_string())?,
                false => self.unknown(question, &error.to_string())?,
            }
            if wrong {
                self.settings = Some(format!(
                    "{}: the configuration of MAS needs this; keep what it has besides, and restart it:\n\n{}",
                    homeserver.name,
                    settings_of_mas(settings.client_id.as_str())
                ));
            }
            // A token that was issued earlier may be valid all the same.
            return Ok(!wrong);
        }
        self.yes("MAS's Admin API", &format!("yes, at {}", settings.admin_url))?;
        self.check_version(mas).await?;
        self.check_account(homeserver, mas, &settings.account).await
    }

    async fn check_version(&mut self, mas: &mas::Reader) -> Result<(), Failure> {
        match mas.version().await {
            Ok(text) => match Version::parse(text.trim_start_matches('v')) {
                Some(version) if version < OLDEST_MAS => self.no(
                    "version of MAS",
                    &format!("{text}: personal sessions require {OLDEST_MAS} or later"),
                ),
                Some(_) => self.yes("version of MAS", &text),
                None => self.yes("version of MAS", &format!("{text}, which cannot be compared")),
            },
            // The endpoint is newer than what is required.
            Err(error) => self.unknown("version of MAS", &error.to_string()),
        }
    }

    async fn check_account(
        &mut self,
        homeserver: &Homeserver,
        mas: &mas::Reader,
        account: &str,
    ) -> Result<bool, Failure> {
        let question = "account in MAS";
        let found = match mas.user_by_name(account).await {
            Ok(found) => found,
            Err(error) => {
                self.failed(question, &error)?;
                return Ok(true);
            }
        };
        let usable = mas::usable_account(found, account, &homeserver.name);
        match &usable {
            Ok(_) => self.yes(question, &format!("yes, `{account}`"))?,
            Err(problem) => self.no(question, problem)?,
        }
        Ok(usable.is_ok())
    }

    /// Checks what the token and Synapse's version mean under MAS.
    pub(super) async fn check_under_mas(
        &mut self,
        homeserver: &Homeserver,
        reader: &Reader,
        whoami: &Whoami,
        identity: &Identity,
    ) -> Result<(), Failure> {
        if let Some(mas) = reader.mas()
            && let Ok(config) = mas.site_config().await
        {
            let (of_mas, question) = (&config.server_name, "server name of MAS");
            match *of_mas == identity.server_name {
                true => self.yes(question, of_mas)?,
                false => self.no(
                    question,
                    &format!("{of_mas}, but that of Synapse is {}: correct `homeserver` of matrix in the configuration of MAS, or `url` and `admin_url`", identity.server_name),
                )?,
            }
        }
        match &whoami.device_id {
            Some(device) => self.yes("device of the token", device)?,
            // No kind needs it.
            None => self.yes(
                "device of the token",
                "none: such a token cannot send messages, and works for up to two minutes after it is revoked; better issue one with the scope urn:matrix:client:device:DEVICE",
            )?,
        }
        if homeserver.mas.is_none() {
            self.yes("MAS", &format!("not configured: with [homeservers.{}.mas] microglia issues and renews its token itself", homeserver.name))?;
        }
        if identity.version < STABLE_SYNAPSE {
            self.yes(
                "Synapse for MAS",
                &format!("{}, where delegating to MAS is experimental: upgrade to {STABLE_SYNAPSE} or later", identity.version_text),
            )?;
        }
        Ok(())
    }
}

/// What an error of the first request to the Admin API answers, and whether the answer is no.
fn question(error: &Error) -> (&'static str, bool) {
    let cause = match &error.cause {
        Cause::NoToken(NoToken::Request(error)) => &error.cause,
        cause => cause,
    };
    match cause {
        Cause::Mas { status: 401 | 403, errors, .. }
            if errors.iter().any(|it| it == "invalid_scope") =>
        {
            ("MAS lets the client use its Admin API", true)
        }
        Cause::Mas { status: 400..=403, .. } => ("MAS accepts the client", true),
        Cause::NotMas { status: 300..=499, .. } => ("MAS's Admin API", true),
        _ => ("MAS's Admin API", false),
    }
}
