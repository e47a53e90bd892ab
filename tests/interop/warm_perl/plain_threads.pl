#!/usr/bin/perl
# plain: uses threads
use threads; my $t = threads->create(sub { "joined" }); print $t->join, "\n";
