// Package nstest gives a test a network of its own, in which it is root.
//
// [Inside] runs the test a second time in a process of its own, in a new user, network and mount
// namespace: real devices of the real kernel, no privileges needed, and nothing is left on the
// machine. It is for tests only.
//
// Each test calls Inside first, from its own goroutine; the other functions are for the test inside.
package nstest
