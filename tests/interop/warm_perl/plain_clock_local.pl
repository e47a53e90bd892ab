#!/usr/bin/perl
# plain: looks at the clock
use lib 'lib'; use Today;
print length $Today::today, "\n";
