// Command meshnet is multi-host container networking without a central store.
//
// With up it is the daemon: up.go wires the packages together. With the other verbs it asks the daemon
// over its socket (package api) and prints what it says, for people or as JSON. It decides nothing
// about networks.
package main
