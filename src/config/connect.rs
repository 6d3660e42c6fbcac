//! The connections to a homeserver and to its MAS.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::settings::{Config, Homeserver};
use crate::http::{Address, Clients, Limits, Observer, Settings, Transport};
use crate::mas;
use crate::values::clock::Clock;

/// How a homeserver and its MAS are reached.
#[derive(Debug)]
pub(crate) struct Connections {
    pub transport: Arc<Transport>,
    /// `None` where no MAS is configured.
    pub mas: Option<Arc<mas::Connection>>,
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
    pub(crate) fn connect(
        &self,
        clients: &mut Clients,
        observer: &Observer,
        clock: &Clock,
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
        let transport = Transport::sharing(clients, settings, Arc::clone(observer))?;
        Ok(Connections { transport: Arc::new(transport), mas })
    }
}
