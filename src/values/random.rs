//! Random numbers that cannot be guessed.

/// Bytes of the generator that TLS uses, which is seeded by the kernel.
///
/// Panics if the kernel provides no random numbers.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let filled = rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes);
    assert!(filled.is_ok(), "the kernel has no random numbers");
    bytes
}
