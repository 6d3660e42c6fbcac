//! `schema!`: one definition gives the keys of a table, their documentation and their parser.

/// Defines the keys of a table, in one of three forms:
///
/// - `pub struct Keys { … }`: all values, there only when each of them is right;
/// - `pub entries Keys { … }`: each key with its location and, where it is right, its value, for tables in which keys are
///   checked against each other;
/// - `pub struct Keys, entries Entries { … }`: both, with `Entries::complete` from one to the other.
///
/// The doc comment of a field is what `kinds` prints, its `where "…" to "…"` the range and its `= "…"` the default as TOML.
/// `parse` reports every error. Keys that are not fields are for the caller to reject, who may share the table among
/// several definitions.
macro_rules! schema {
    (
        $(#[$meta:meta])*
        pub struct $name:ident { $($fields:tt)* }
    ) => {
        $crate::values::schema::schema! { @struct $(#[$meta])* $name $($fields)* }
        $crate::values::schema::schema! { @keys $name $($fields)* }
        $crate::values::schema::schema! { @parse_struct $name $($fields)* }
    };
    (pub entries $name:ident { $($fields:tt)* }) => {
        $crate::values::schema::schema! { @entries $name $($fields)* }
        $crate::values::schema::schema! { @keys $name $($fields)* }
    };
    (
        $(#[$meta:meta])*
        pub struct $name:ident, entries $entries:ident { $($fields:tt)* }
    ) => {
        $crate::values::schema::schema! { @struct $(#[$meta])* $name $($fields)* }
        $crate::values::schema::schema! { @entries $entries $($fields)* }
        $crate::values::schema::schema! { @keys $entries $($fields)* }
        $crate::values::schema::schema! { @complete $name $entries $($fields)* }
    };
    (
        @struct $(#[$meta:meta])* $name:ident
        $($(#[doc = $about:literal])+ pub $field:ident: $type:ty $(where $least:literal to $greatest:literal)? $(= $default:literal)?,)*
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone)]
        pub struct $name {
            $($(#[doc = $about])+ pub $field: $type,)*
        }
    };
    (
        @entries $name:ident
        $($(#[doc = $about:literal])+ pub $field:ident: $type:ty $(where $least:literal to $greatest:literal)? $(= $default:literal)?,)*
    ) => {
        #[derive(Debug)]
        pub struct $name {
            $($(#[doc = $about])+ pub $field: $crate::values::schema::Entry<$type>,)*
        }

        impl $name {
            pub fn parse(
                table: &$crate::values::schema::Table<'_, '_>,
                errors: &mut Vec<$crate::values::schema::ConfigError>,
            ) -> Self {
                Self { $($field: table.entry(
                    stringify!($field),
                    $crate::values::schema::schema!(@default $($default)?),
                    $crate::values::schema::schema!(@range $($least $greatest)?),
                    errors,
                ),)* }
            }
        }
    };
    (
        @parse_struct $name:ident
        $($(#[doc = $about:literal])+ pub $field:ident: $type:ty $(where $least:literal to $greatest:literal)? $(= $default:literal)?,)*
    ) => {
        impl $name {
            pub fn parse(
                table: &$crate::values::schema::Table<'_, '_>,
                errors: &mut Vec<$crate::values::schema::ConfigError>,
            ) -> Option<Self> {
                $(let $field = table.entry::<$type>(
                    stringify!($field),
                    $crate::values::schema::schema!(@default $($default)?),
                    $crate::values::schema::schema!(@range $($least $greatest)?),
                    errors,
                ).value;)*
                Some(Self { $($field: $field?,)* })
            }
        }
    };
    (
        @complete $name:ident $entries:ident
        $($(#[doc = $about:literal])+ pub $field:ident: $type:ty $(where $least:literal to $greatest:literal)? $(= $default:literal)?,)*
    ) => {
        impl $entries {
            /// `None` where a key is wrong.
            pub fn complete(self) -> Option<$name> {
                Some($name { $($field: self.$field.value?,)* })
            }
        }
    };
    (
        @keys $name:ident
        $($(#[doc = $about:literal])+ pub $field:ident: $type:ty $(where $least:literal to $greatest:literal)? $(= $default:literal)?,)*
    ) => {
        impl $name {
            pub const KEYS: &'static [$crate::values::schema::Key] = &[$($crate::values::schema::Key {
                name: stringify!($field),
                value: <$type as $crate::values::schema::Value>::describe,
                default: $crate::values::schema::schema!(@default $($default)?),
                required: !<$type as $crate::values::schema::Value>::OPTIONAL
                    && $crate::values::schema::schema!(@default $($default)?).is_none(),
                range: $crate::values::schema::schema!(@range $($least $greatest)?),
                quantity: <$type as $crate::values::schema::Value>::QUANTITY,
                about: concat!($($about),+),
            },)*];
        }
    };
    (@range) => { None::<(&'static str, &'static str)> };
    (@range $least:literal $greatest:literal) => { Some(($least, $greatest)) };
    (@default) => { None::<&'static str> };
    (@default $default:literal) => { Some($default) };
}

pub(crate) use schema;
