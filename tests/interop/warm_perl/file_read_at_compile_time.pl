#!/usr/bin/perl
BEGIN { open my $c, '<', 'lib/config.txt' or die; our @config = <$c>; close $c; our $missing = open(my $n, '<', 'lib/none.txt') ? 1 : 0; }
our (@config, $missing); print "$missing @config";
