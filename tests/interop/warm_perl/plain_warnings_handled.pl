#!/usr/bin/perl -w
# plain: handles warnings
BEGIN { $SIG{__WARN__} = sub { print STDERR "W: $_[0]" } }
$once = 1; print "x\n";
