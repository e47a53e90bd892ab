#!/usr/bin/perl
# What one request changes, no other sees.
our %cache; our $count = 0;
BEGIN { %cache = (compiled => 1) }
$cache{$ENV{QUERY_STRING}}++; $count++; my @list = sort keys %cache;
print "@list $count\n";
sub closure { our $calls; return ++$calls } print closure(), closure(), "\n";
