#!/usr/bin/perl
use Carp qw(carp cluck);
sub inner { carp "carped"; cluck "clucked" } sub outer { inner(1, "two") }
outer();
print "ok\n";
