package state

import (
	"net/netip"
	"strconv"
	"strings"

	"meshnet/crdt"
)

// Keys are text: a word, then ids as 16 hexadecimal digits. Owned: node, ep/<id>, use/<net>,
// blk/<net>/<prefix>. Shared: net/<id>, kill/<net>, forget/<node>, life/<definition>.
const (
	keyNode     = "node"
	keyEndpoint = "ep/"
	keyUse      = "use/"
	keyBlock    = "blk/"
	keyNetwork  = "net/"
	keyKill     = "kill/"
	keyForget   = "forget/"
	keyLife     = "life/"
)

func endpointKey(id EndpointID) string { return keyEndpoint + id.String() }
func useKey(id NetworkID) string       { return keyUse + id.String() }
func networkKey(id NetworkID) string   { return keyNetwork + id.String() }
func killKey(id NetworkID) string      { return keyKill + id.String() }
func forgetKey(id NodeID) string       { return keyForget + id.String() }

func blockKey(id NetworkID, p netip.Prefix) string {
	return keyBlock + id.String() + "/" + p.String()
}

// lifeKey names a definition whatever its life.
func lifeKey(d Definition) string {
	d.Life = 0
	return keyLife + d.ID().String()
}

// parseID reads the id of a key with this word before it.
func parseID[T ~uint64](key, word string) (T, bool) {
	s, ok := strings.CutPrefix(key, word)
	if !ok || len(s) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 16, 64)
	return T(n), err == nil && n != 0 && s == strings.ToLower(s)
}

func parseBlockKey(key string) (id NetworkID, p netip.Prefix, ok bool) {
	s, ok := strings.CutPrefix(key, keyBlock)
	net, prefix, found := strings.Cut(s, "/")
	if !ok || !found {
		return 0, p, false
	}
	id, ok = parseID[NetworkID](net, "")
	p, err := netip.ParsePrefix(prefix)
	return id, p, ok && err == nil && p == p.Masked() && p.String() == prefix
}

// useOf returns where a node's use of a network was written.
func useOf(op crdt.Op) useAt { return useAt{op.Node, op.Epoch, op.Seq} }
