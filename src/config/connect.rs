//! The connections to a homeserver and to its MAS.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::settings::{Config, Homeserver};
use crate::http::{Address, Clients, Limits, Observer, Settings, TokenSource, Transport};
use crate::mas;
use crate::values::clock::Clock;

/// How a homeserver and its MAS are reached.
#[derive(Debug)]
pub(crate) struct Connections {
    pub transport: Arc<Transport>,
    /// `None` where no MAS is configured.
    pub mas: Option<Arc<mas::Connection>>,
}

/// What a connection is made for.
pub(crate) struct ConnectFor<'a> {
    pub observer: &'a Observer,
    pub clock: &'a Clock,
    pub state_dir: &'a Path,
    pub expiry_observer: mas::ExpiryObserver,
}

impl Config {
    /// New limits for all addresses, for a process that runs one command.
    pub(crate) fn new_limits(&self) -> BTreeMap<Address, Arc<Limits>> {
        let limits = self.limits().into_iter();
        limits.map(|(address, (_, values))| (address, Arc::new(Limits::new(values)))).collect()
    }
}

impl Homeserver {
    /// Connects both; `limits` are those of an address, which are new ones where it returns `None`.
    ///
    /// Under MAS the access token is issued when it is needed, and kept in the state directory.
    pub(crate) fn connect(
        &self,
        clients: &mut Clients,
        ConnectFor { observer, clock, state_dir, expiry_observer }: ConnectFor<'_>,
        mut limits: impl FnMut(&Address) -> Option<Arc<Limits>>,
    ) -> Result<Connections, String> {
        let mut settings = self.settings();
        if let Some(limits) = limits(&self.address()) {
            settings = Settings { limits, ..settings };
        }
        let mas = match self.mas_settings(limits) {
            Some(settings) => Some(Arc::new(mas::Connection::sharing(
                clients,
                settings,
                observer,
                clock.clone(),
            )?)),
            None => None,
        };
        if let Some(connection) = &mas {
            let own_token = mas::OwnToken::new(mas::OwnTokenSettings {
                homeserver: self.name.clone(),
                connection: Arc::clone(connection),
                state_dir: state_dir.to_owned(),
                clock: clock.clone(),
                observer: expiry_observer,
                refusals_cached_for: mas::REFUSALS_CACHED_FOR,
            });
            settings.token = TokenSource::Issued(Arc::new(own_token));
        }
        let transport = Transport::sharing(clients, settings, Arc::clone(observer))?;
        Ok(Connections { transport: Arc::new(transport), mas })
    }
}
