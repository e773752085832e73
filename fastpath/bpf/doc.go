// Package bpf holds the program of the fast path: its C source and, generated from it by bpf2go, the
// object that is embedded and the Go types of its maps. make generate makes them anew; a test says
// when they differ. It decides nothing: package fastpath loads, fills and attaches.
package bpf

// The flags are those of Debian's clang; the object is for little-endian machines, which all are that
// Debian builds Go for but s390x.
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go@v0.22.0 -cc clang -strip llvm-strip -cflags "-O2 -g -Wall -Werror -I/usr/include/x86_64-linux-gnu -fdebug-prefix-map=/=." -target bpfel -type port -type member -type way -type flow -type exit -type inward -type entry -type count -type kind Fast fast.c
