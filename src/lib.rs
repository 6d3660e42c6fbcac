//! Housekeeping for Synapse.
