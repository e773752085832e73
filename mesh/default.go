package mesh

import (
	"errors"
	"net/netip"
	"time"

	"meshnet/state"
)

// defaultName is the network that a mesh has from the beginning.
const defaultName = "default"

func (n *Node) makeDefault() {
	if _, ok := n.view.ByName(defaultName); ok || !n.c.DefaultSubnet.IsValid() {
		return
	}
	w := state.Create{Name: defaultName, Subnet: n.c.DefaultSubnet}
	for range 2 {
		def, err := w.Definition(n.taken())
		if err != nil {
			n.c.Log.Error("network default not made", "err", err)
			return
		}
		out, err := n.doc.Apply(state.CreateNetwork{Def: def, At: time.Now().Unix()})
		if err == nil {
			n.c.Log.Info("network made", "network", defaultName, "subnet", def.Subnet)
			n.tell(out)
			return
		}
		if !errors.Is(err, state.ErrOverlap) {
			n.c.Log.Error("network default not made", "err", err)
			return
		}
		w.Subnet = netip.Prefix{}
	}
}
