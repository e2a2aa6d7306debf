"""The library's parts under the interfaces of other libraries."""
