package main

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
)

// results are all clusters measured, of all passes; those that were only idle have no writes.
type results []result

// of returns a figure of each pass in which it was measured.
func (rs results) of(system string, nodes int, idle bool, figure func(result) float64) map[int]float64 {
	m := map[int]float64{}
	for _, r := range rs {
		if r.System == system && r.Nodes == nodes && (r.Writes == 0) == idle {
			m[r.Pass] = figure(r)
		}
	}
	return m
}

// spread is the median of a figure over the passes, with the lowest and the highest.
type spread struct{ median, low, high float64 }

func spreadOf(m map[int]float64) (s spread, ok bool) {
	var vs []float64
	for _, v := range m {
		vs = append(vs, v)
	}
	if len(vs) == 0 {
		return s, false
	}
	slices.Sort(vs)
	return spread{(vs[(len(vs)-1)/2] + vs[len(vs)/2]) / 2, vs[0], vs[len(vs)-1]}, true
}

func (s spread) String() string {
	if s.low == s.high {
		return short(s.median)
	}
	return fmt.Sprintf("%s (%s–%s)", short(s.median), short(s.low), short(s.high))
}

// short has three digits.
func short(v float64) string {
	switch {
	case v >= 99.5 || v <= -99.5:
		return fmt.Sprintf("%.0f", v)
	case v >= 9.95 || v <= -9.95:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

type column struct {
	name   string
	idle   bool
	figure func(result) float64
}

var columns = []column{
	{"forms in ms", false, func(r result) float64 { return r.FormMS }},
	{"forms, CPU ms", false, func(r result) float64 { return r.FormCPUMS }},
	{"all p50 ms", false, func(r result) float64 { return r.AllP50 }},
	{"all p99 ms", false, func(r result) float64 { return r.AllP99 }},
	{"kB/write", false, func(r result) float64 { return r.BytesWrite / 1000 }},
	{"packets/write", false, func(r result) float64 { return r.PacketsWrite }},
	{"CPU ms/write", false, func(r result) float64 { return r.CPUMSWrite }},
	{"idle B/s/node", true, func(r result) float64 { return r.IdleBps }},
}

// print writes two tables in Markdown: the figures, and what is asked of ours.
func (rs results) print(w io.Writer, systems []string, sizes []int) {
	passes, most, writes, slowest, lost := 0, 0, 0, 0.0, 0
	for _, r := range rs {
		passes, most = max(passes, r.Pass+1), max(most, r.Writes)
		if r.System == ours {
			slowest = max(slowest, r.AllMax)
			writes, lost = writes+r.Writes, lost+r.Lost
		}
	}
	fmt.Fprintf(w, "%s, %d processors. %d passes, systems in turn: median (lowest–highest), %d writes a pass of each size (%d of memberlist, serf, networkdb). A write is seen on all nodes: *all*.\n\n",
		runtime.Version(), runtime.NumCPU(), passes, most, fewer("serf", most))
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	head, line := "| system | nodes |", "|---|--:|"
	for _, c := range columns {
		head, line = head+" "+c.name+" |", line+"--:|"
	}
	fmt.Fprintf(t, "%s\n%s\n", head, line)
	for _, n := range sizes {
		for _, s := range systems {
			row := fmt.Sprintf("| %s | %d |", s, n)
			for _, c := range columns {
				cell := "–"
				if v, ok := spreadOf(rs.of(s, n, c.idle, c.figure)); ok {
					cell = v.String()
				}
				row += " " + cell + " |"
			}
			fmt.Fprintln(t, row)
		}
	}
	if err := t.Flush(); err != nil {
		panic(err) // standard output is gone
	}
	fmt.Fprintf(w, "\n| asked of meshnet | budget | seen | |\n|---|--:|--:|---|\n")
	for _, b := range budgets {
		rs.judge(w, b, sizes)
	}
	if writes > 0 {
		verdict := "held"
		if slowest > 200 || lost > 0 {
			verdict = "MISSED"
		}
		fmt.Fprintf(w, "| slowest of %d writes, all sizes; not seen everywhere: %d | ≤ 200 ms | %s ms | %s |\n",
			writes, lost, short(slowest), verdict)
	}
}

// budget is something asked of ours (design: budgets): a figure or its ratio to a peer's in the same
// pass.
type budget struct {
	what  string
	nodes int
	peer  string // "": the figure itself
	// inverse asks how many times the peer's figure is ours, and for at least the limit.
	inverse bool
	limit   float64
	col     string
	unit    string
}

var budgets = []budget{
	{"write seen on all, p50, to weave mesh", 5, "weave mesh", false, 1.2, "all p50 ms", "×"},
	{"the same, p99", 5, "weave mesh", false, 1.2, "all p99 ms", "×"},
	{"write seen on all, p50, to weave mesh", 25, "weave mesh", false, 1.2, "all p50 ms", "×"},
	{"the same, p99", 25, "weave mesh", false, 1.2, "all p99 ms", "×"},
	{"write seen on all, p50, to weave mesh", 50, "weave mesh", false, 1.2, "all p50 ms", "×"},
	{"the same, p99", 50, "weave mesh", false, 1.5, "all p99 ms", "×"},
	{"networkdb's p50 to ours", 25, "networkdb", true, 100, "all p50 ms", "×"},
	{"networkdb's p50 to ours", 50, "networkdb", true, 100, "all p50 ms", "×"},
	{"forms", 50, "", false, 2000, "forms in ms", " ms"},
	{"a write costs", 50, "", false, 20, "kB/write", " kB"},
	{"a write costs", 50, "", false, 300, "packets/write", " packets"},
	{"CPU of a write, to push + memberlist queue", 50, "push + memberlist queue", false, 1.5, "CPU ms/write", "×"},
	{"idle traffic of a node", 50, "", false, 600, "idle B/s/node", " B/s"},
}

// judge prints a budget and what was seen, if it was measured.
func (rs results) judge(w io.Writer, b budget, sizes []int) {
	c := columns[slices.IndexFunc(columns, func(c column) bool { return c.name == b.col })]
	seen := rs.of(ours, b.nodes, c.idle, c.figure)
	if b.peer != "" {
		peer := rs.of(b.peer, b.nodes, c.idle, c.figure)
		for pass, v := range seen {
			p, ok := peer[pass]
			switch {
			case !ok || p == 0 || v == 0:
				delete(seen, pass)
			case b.inverse:
				seen[pass] = p / v
			default:
				seen[pass] = v / p
			}
		}
	}
	s, ok := spreadOf(seen)
	if !ok || !slices.Contains(sizes, b.nodes) {
		return
	}
	sign, held := "≤", s.median <= b.limit
	if b.inverse {
		sign, held = "≥", s.median >= b.limit
	}
	verdict := "held"
	if !held {
		verdict = "MISSED"
	}
	fmt.Fprintf(w, "| %s, %d nodes | %s %s%s | %s%s | %s |\n", b.what, b.nodes, sign, short(b.limit), b.unit,
		s, strings.TrimRight(b.unit, ""), verdict)
}
