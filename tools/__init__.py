"""Tools for developers of this project. The packages of the project do not import the tools."""
