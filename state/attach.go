package state

// Check returns an error, for people, of what no endpoint may have of that which a wish asks for. The
// address is left to who gives it out.
func (a *Attach) Check() error {
	e := Endpoint{ID: a.ID, Container: a.Container, MAC: a.MAC, IfName: a.IfName, Names: a.Names}
	if e.MAC == (MAC{}) {
		e.MAC = MAC{0x02} // stands for the one that comes from the address
	}
	return e.check()
}
