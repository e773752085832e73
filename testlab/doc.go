// Package testlab tests the built program on several hosts of this machine, through the same script,
// lab, that people use.
//
// Each host is a set of namespaces with a real Open vSwitch of its own; lab says what it needs. The
// tests run only with -lab, as root, one after another; whatever they find, they leave nothing behind.
package testlab
